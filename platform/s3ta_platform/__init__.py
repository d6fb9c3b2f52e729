"""The orchestration of S3TA experiments: sweeps, training and attacks on Ray, tracked in MLflow."""
