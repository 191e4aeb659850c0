"""The service: receive → fan out → settle → acknowledge. Started by `python -m worker`."""
