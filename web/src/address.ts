/** An instance's URL as people say it: without the scheme. */
export function addressOf(instanceUrl: string): string {
  return instanceUrl.replace(/^https?:\/\//, "");
}
