// How a judge calls somebody: one connection a call, no redirects, a time limit.

import http from "node:http";
import https from "node:https";

const MAX_ANSWER_BYTES = 1 << 20;

// {status, headers, body}; throws when there is no full answer in time.
export async function call(method, url, headers, text, timeoutMs) {
  const { request } = url.protocol === "https:" ? https : http;
  const signal = AbortSignal.timeout(timeoutMs);
  try {
    const response = await new Promise((resolve, reject) => {
      // agent: false means a connection of its own, so a relay that restarts
      // between two calls can't fail the second one with a stale socket.
      const outgoing = request(url, { method, headers, agent: false, signal }, resolve);
      outgoing.on("error", reject);
      outgoing.end(text);
    });
    const chunks = [];
    let size = 0;
    for await (const chunk of response) {
      size += chunk.length;
      if (size > MAX_ANSWER_BYTES) throw new Error(`answer exceeds ${MAX_ANSWER_BYTES} bytes`);
      chunks.push(chunk);
    }
    return {
      status: response.statusCode,
      headers: response.headers,
      body: Buffer.concat(chunks).toString("utf8"),
    };
  } catch (error) {
    if (signal.aborted) throw new TimedOut(`no full answer within ${timeoutMs} ms`);
    throw error;
  }
}

export class TimedOut extends Error {}
