"""The Tunery operator: turns LoRAJobs and AdapterMerges into Jobs, and reports what came of them."""
