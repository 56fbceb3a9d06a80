#!/usr/bin/env node
// {{name}}: a plugin for Demi. No package is needed.
//
// JSON-RPC 2.0, one message a line: Demi asks on stdin, answers go to stdout, and stderr is the log.

import { Buffer } from 'node:buffer';

console.log = console.error; // so that one by mistake becomes a line of the log and not a broken message

// Throw this when the request cannot be answered as it is: its caller is at fault, and not this plugin.
class Mistaken extends Error {}

// ---- your own code: these three -------------------------------------------------------------------------------------

// Called once, before anything else. `settings` are those of plugin.ron.
async function initialize(settings) {}

// Answers one request; several may be under way at once. `body` is a Buffer, `request` has what else is known: from,
// kind, method, target, content_type. Return a string or a Buffer.
async function handle(body, request) {
  return body;
}

// null if all is well, or else a sentence about what is not.
function health() {
  return null;
}

// ---- the protocol: no need to change anything below -----------------------------------------------------------------

const send = (message) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', ...message }) + '\n');
const fail = (id, code, message) => send({ id, error: { code, message } });

function howItIs() {
  const error = health();
  return error ? { status: 'down', error } : { status: 'up' };
}

// Whatever goes wrong here costs one request.
async function answer(id, request) {
  try {
    const coded = request.body_base64;
    const body = coded === undefined ? Buffer.from(request.body ?? '') : Buffer.from(coded, 'base64');
    const reply = Buffer.from(await handle(body, request));
    const text = reply.toString();
    const result = Buffer.from(text).equals(reply) ? { body: text } : { body_base64: reply.toString('base64') };
    send({ id, result: { status: 200, content_type: 'text/plain; charset=utf-8', ...result } });
  } catch (error) {
    fail(id, error instanceof Mistaken ? -32001 : -32000, String(error?.message ?? error));
  }
}

async function greet(id, params) {
  if (params.protocol !== 1) return fail(id, -32001, 'only protocol 1 is spoken here');
  try {
    await initialize(params.settings ?? {});
    send({ id, result: { protocol: 1 } });
  } catch (error) {
    fail(id, -32000, String(error?.message ?? error));
  }
}

const underWay = new Set();

function take(line) {
  let message;
  try {
    message = JSON.parse(line);
  } catch {
    return console.error('passed over a line that is no message');
  }
  const { id, method, params } = message ?? {};
  switch (method) {
    case 'initialize':
      return greet(id, params ?? {});
    case 'handle': {
      const answering = answer(id, params ?? {}).finally(() => underWay.delete(answering));
      return underWay.add(answering);
    }
    case 'health':
    case 'trim': // asks to give memory back; here there is nothing to give
      return send({ id, result: howItIs() });
    case 'shutdown':
      return finish();
    case 'cancel': // nobody waits for that answer any more, and nobody minds it
    case undefined:
      return;
    default:
      if (id !== undefined) fail(id, -32601, `there is no method ${JSON.stringify(method)}`);
  }
}

// What was begun is finished first.
async function finish() {
  await Promise.all(underWay);
  process.exit(0);
}

// Lines are split at line feeds alone: a JSON text may hold other characters that count as line ends elsewhere.
let pieces = [];
process.stdin.on('data', (chunk) => {
  let end;
  while ((end = chunk.indexOf(10)) >= 0) {
    take(Buffer.concat([...pieces, chunk.subarray(0, end)]).toString());
    pieces = [];
    chunk = chunk.subarray(end + 1);
  }
  pieces.push(chunk);
});
process.stdin.on('end', finish);
