"""Provide the programs that the chart runs in pods of their own: the certificate's Job and `helm test`."""
