"""Deployment to AWS: CloudFormation templates, and the script behind `make deploy`. See docs/deploy.md."""
