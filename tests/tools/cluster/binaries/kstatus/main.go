// What kstatus makes of objects: the library by which Flux, kpt and others judge what they do not know.
//
// It reads a JSON list of objects from standard input and writes a list of {status, message}, one for each.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var objects []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		return err
	}
	verdicts := make([]verdict, 0, len(objects))
	for _, text := range objects {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(text); err != nil {
			return err
		}
		found, err := status.Compute(object)
		if err != nil {
			return err
		}
		verdicts = append(verdicts, verdict{Status: found.Status.String(), Message: found.Message})
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}
