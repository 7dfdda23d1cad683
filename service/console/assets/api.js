// The gateway's API: requests with the key that was typed in, errors as it words them, and streams.

const KEY = "graftwork-key"; // of this tab's session alone; never part of an address

export const key = () => sessionStorage.getItem(KEY);
export const keep = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    Object.assign(this, { status, param: error?.param ?? null, code: error?.code ?? null });
  }
}

async function ask(method, path, { body, form, signal, accept } = {}) {
  const headers = {};
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body) headers["content-type"] = "application/json";
  if (accept) headers.accept = accept;
  const response = await fetch(path, { method, headers, signal, body: form ?? (body && JSON.stringify(body)) });
  if (response.ok) return response;
  const error = await response.json().then((answer) => answer.error, () => null);
  if (response.status === 401) dispatchEvent(new CustomEvent("locked"));
  throw new ApiError(response.status, error);
}

export const get = async (path, signal) => (await ask("GET", path, { signal })).json();
export const post = async (path, body = {}) => (await ask("POST", path, { body })).json();
export const put = async (path, body) => (await ask("PUT", path, { body })).json();
export const patch = async (path, body) => (await ask("PATCH", path, { body })).json();
export const remove = async (path) => (await ask("DELETE", path)).json();
export const upload = async (path, fields, files) => {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  for (const [name, file] of files) form.append(name, file, file.name);
  return (await ask("POST", path, { form })).json();
};

/** The objects of a list. */
export const list = async (path, signal) => (await get(path, signal)).data;

/** What is there, or null where it is not, or not for this key. */
export const find = async (path, signal) => {
  try { return await get(path, signal); } catch (error) {
    if (error.status === 404 || error.status === 403) return null;
    throw error;
  }
};

/** Server-sent events as objects, until the stream says that it is done. */
export async function* events(path, { body, signal } = {}) {
  const response = await ask(body ? "POST" : "GET", path, { body, signal, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

export const id = encodeURIComponent;
const JOBS = { prunejob: "/v1/pruning/jobs", adapterjob: "/v1/adapters/jobs", sweepjob: "/v1/pruning/sweeps" };
export const jobPath = (job) => `${JOBS[job.split("-")[0]]}/${id(job)}`;
export const jobsPath = (job) => JOBS[job.split("-")[0]];

/** Jobs of all kinds, newest first. */
export async function jobs(limit, signal) {
  const found = await Promise.all(Object.values(JOBS).map((path) => list(`${path}?limit=${limit}`, signal)));
  return found.flat().sort((a, b) => b.created_at - a.created_at).slice(0, limit);
}
