module tunery.dev/tests/tools/cluster/pause

go 1.24
