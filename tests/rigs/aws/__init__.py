"""An AWS on one machine: moto answers for EC2, IAM, STS and S3, and a namespace stands for each instance."""
