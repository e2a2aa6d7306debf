// Requests to the server that the page came from.

/** An error that the server explains in words. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { name: "ApiError", status, code });
  }
}

const LOST = "The server cannot be reached. Is it still running?";

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, "unreachable", LOST);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const { code = "unknown", message = `The server answered ${answer.status}.` } = said.error ?? {};
  throw new ApiError(answer.status, code, message);
}

const sending = (body, signal) => ({
  method: "POST",
  headers: { "content-type": "application/json", accept: "application/json" },
  body: JSON.stringify(body),
  signal,
});

export const get = async (path, signal) => (await request(path, { signal })).json();
export const post = async (path, body, signal) => (await request(path, sending(body, signal))).json();

/**
 * Search, and report every event as it arrives.
 * @param {object} body of `/api/search`
 * @param {AbortSignal} signal
 * @param {function(object): void} report called with `first_stage`, `progress`, `scores` and `done`
 */
export async function search(body, signal, report) {
  const options = sending(body, signal);
  options.headers.accept = "application/x-ndjson";
  const reader = (await request("/api/search", options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  const take = (line) => {
    if (!line.trim()) return;
    const event = JSON.parse(line);
    if (event.event === "error") throw new ApiError(200, event.error.code, event.error.message);
    ended ||= event.event === "done";
    report(event);
  };
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError(0, "unreachable", LOST);
    }
    if (part.done) break;
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    lines.forEach(take);
  }
  take(rest);
  if (!ended) throw new ApiError(0, "cut_short", "The answer broke off before its end. Try again.");
}

/** Upload one image; `{upload, thumb}`. */
export async function upload(file) {
  const body = new FormData();
  body.append("file", file);
  return (await request("/api/uploads", { method: "POST", body })).json();
}

/** Save images as a zip. */
export async function download(ids) {
  const content = await (await request("/api/download", sending({ ids }))).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = "images.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
