// What the path is measured against: Node's http and isolated-vm and nothing else. No authentication, no
// records, no other process. Usage: node --no-node-snapshot server.mjs PORT FUNCTION_FILE RUNNER_FOLDER
import http from "node:http";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [port, file, runner] = process.argv.slice(2);
const ivm = createRequire(path.join(runner, "package.json"))("isolated-vm");

const isolate = new ivm.Isolate({ memoryLimit: 128 });
const context = isolate.createContextSync();
const source = readFileSync(file, "utf8").replace("export default", "globalThis.main =");
isolate.compileScriptSync(source).runSync(context);
const call = context.evalClosureSync(
  "return (text) => JSON.stringify(main(JSON.parse(text), {}))", [], { result: { reference: true } });

http
  .createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      const output = call.applySync(undefined, [Buffer.concat(chunks).toString()], { timeout: 1000 });
      response.writeHead(200, { "content-type": "application/json" });
      response.end(output);
    });
  })
  .listen(Number(port), "127.0.0.1", () => console.log("listening"));
