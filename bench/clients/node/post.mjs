// The AWS SDK for JavaScript, with one post in flight per connection. Arguments and output as in section.py.

import { once } from "node:events";
import { ApiGatewayManagementApiClient, PostToConnectionCommand } from "@aws-sdk/client-apigatewaymanagementapi";

const [url, posts, bodyBytes, concurrency, warmUp] = process.argv.slice(2, 7).map((each, n) => (n ? Number(each) : each));
const body = Buffer.alloc(bodyBytes, "x");
const client = new ApiGatewayManagementApiClient({
  endpoint: url,
  region: process.env.AWS_REGION,
  requestHandler: { httpsAgent: { keepAlive: true, maxSockets: concurrency } },
});

async function post(count) {
  let next = 0;
  async function postNext() {
    while (next < count) {
      const id = `${String(next++).padStart(15, "0")}=`;
      await client.send(new PostToConnectionCommand({ ConnectionId: id, Data: body }));
    }
  }
  await Promise.all(Array.from({ length: concurrency }, postNext));
}

await post(warmUp);
console.log("ready");
await once(process.stdin, "data");
const before = process.cpuUsage();
const began = process.hrtime.bigint();
await post(posts);
const seconds = Number(process.hrtime.bigint() - began) / 1e9;
const { user, system } = process.cpuUsage(before);
console.log(JSON.stringify({ posts, seconds, cpu_seconds: (user + system) / 1e6 }));
process.exit(0);
