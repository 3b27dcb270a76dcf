// Models in ONNX Runtime Web, on its WebAssembly execution provider: what a browser computes, for the proof.
//
// Messages on stdin and stdout: 4 bytes of length (little endian) and a JSON header; a header's `tensors` say what follows it:
// each one's raw bytes, in order. Asked: {op: "open", id, path}, {op: "run", id, tensors}, {op: "close", id}. Answered:
// {inputs, outputs, version}, {tensors}, {}, or {error}. Nothing else is written to stdout. The process ends when stdin does.

import { readFileSync, readSync, writeSync } from "node:fs";

for (const kind of ["log", "info", "debug", "warn"]) console[kind] = (...said) => console.error(...said);

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};

const ort = await import("onnxruntime-web/wasm");
ort.env.logLevel = "fatal";
ort.env.wasm.numThreads = 1;
ort.env.wasm.proxy = false;
const sessions = new Map();
const FREE = 0xffffffff; // what a dimension without a name has for its size

function read(length) {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; ) {
    const got = readSync(0, bytes, at, length - at, null);
    if (got === 0) process.exit(0);
    at += got;
  }
  return bytes;
}

function write(header, parts = []) {
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  for (const part of [length, text, ...parts]) {
    for (let at = 0; at < part.length; ) at += writeSync(1, part, at);
  }
}

function tensorOf({ name, type, dims }, data) {
  const aligned = data.buffer.slice(data.byteOffset, data.byteOffset + data.length);
  return [name, new ort.Tensor(type, new ARRAYS[type](aligned), dims)];
}

function described(metadata) {
  return metadata.map((value) => ({
    name: value.name,
    type: value.isTensor ? value.type : "no tensor",
    shape: value.isTensor ? value.shape.map((dim) => (typeof dim === "number" && dim < FREE ? dim : null)) : [],
  }));
}

async function open({ id, path }) {
  const session = await ort.InferenceSession.create(readFileSync(path), { executionProviders: ["wasm"], logSeverityLevel: 4 });
  sessions.set(id, session);
  write({ inputs: described(session.inputMetadata), outputs: described(session.outputMetadata), version: ort.env.versions.web });
}

async function run({ id, tensors }) {
  const given = tensors.map(({ bytes }) => read(bytes)); // all of them, before anything can be refused
  const session = sessions.get(id);
  const found = await session.run(Object.fromEntries(tensors.map((tensor, at) => tensorOf(tensor, given[at]))));
  const parts = [];
  const headers = session.outputNames.map((name) => {
    const { type, dims, data } = found[name];
    if (!(type in ARRAYS)) throw new Error(`output '${name}': expected numbers, got ${type}`);
    parts.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    return { name, type, dims: [...dims], bytes: data.byteLength };
  });
  write({ tensors: headers }, parts);
}

async function close({ id }) {
  await sessions.get(id)?.release();
  sessions.delete(id);
  write({});
}

const operations = { open, run, close };
for (;;) {
  const asked = JSON.parse(read(read(4).readUInt32LE()).toString());
  try {
    await operations[asked.op](asked);
  } catch (error) {
    write({ error: String(error?.message ?? error) });
  }
}
