-- Posts to @connections that look signed: the headers of a real request, with a session token of 1,000 characters.
-- The signature is constant, so that wrk sends prepared bytes: what it costs is the least that a post can cost.
--
--   wrk -t1 -c64 -d5s -s post.lua https://127.0.0.1:8443/production/@connections/L0SM9cOFvHcCIhw%3D -- 256

function init(args)
    wrk.method = "POST"
    wrk.body = string.rep("x", tonumber(args[1] or "256"))
    wrk.headers["Content-Type"] = "application/octet-stream"
    wrk.headers["X-Amz-Date"] = "20260101T000000Z"
    wrk.headers["X-Amz-Security-Token"] = string.rep("IQoJb3JpZ2luX2VjEA/+", 50)
    wrk.headers["Authorization"] = "AWS4-HMAC-SHA256 Credential=ASIAIOSFODNN7EXAMPLE/20260101/eu-central-1/execute-api/"
        .. "aws4_request, SignedHeaders=host;x-amz-date;x-amz-security-token, Signature=" .. string.rep("0123abcd", 8)
end
