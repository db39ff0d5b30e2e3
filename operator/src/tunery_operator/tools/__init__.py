"""Provide the programs that the chart runs beside the operator: the certificate's Job and `helm test`."""
