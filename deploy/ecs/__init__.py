"""Gatecast on AWS: CloudFormation stacks, and what brings them there. `make deploy`; docs/deploy.md."""
