// An answer other than success. content: as http.mjs sends it, like {json: {message: ".."}}.
export class Refused extends Error {
  constructor(status, content = {}) {
    super(`${status} ${JSON.stringify(content)}`);
    this.answer = { status, ...content };
  }
}
