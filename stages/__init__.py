"""One file a stage, readable top to bottom; each training stage runs as one resumable DeepSpeed job."""
