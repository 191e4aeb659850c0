"""HTTP/1.1 and Signature Version 4 for many small requests: keep-alive connections, responses, signatures."""
