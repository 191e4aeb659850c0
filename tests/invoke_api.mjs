// Lambda's Invoke API in Node, as far as the emulator's tests need it: node invoke_api.mjs NAME=FILE …
// Each FILE is a module with a function `handler`. It prints its port once it listens, on the loopback address.
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

const handlers = {};
for (const argument of process.argv.slice(2)) {
  const [name, file] = argument.split("=");
  handlers[name] = (await import(pathToFileURL(file))).handler;
}

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const name = /^\/2015-03-31\/functions\/([^/]+)\/invocations$/.exec(request.url)?.[1];
  if (request.method !== "POST" || !(name in handlers)) {
    response.writeHead(404).end("{}");
    return;
  }
  try {
    response.end(JSON.stringify(await handlers[name](JSON.parse(Buffer.concat(chunks)), {})));
  } catch (error) {
    response.setHeader("X-Amz-Function-Error", "Unhandled");
    response.end(JSON.stringify({ errorType: error.name, errorMessage: error.message }));
  }
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
