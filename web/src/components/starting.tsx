import { texts } from "../texts.ts";
import { Loading } from "./spinner.tsx";

/** The page before there is anything to show, of the same shape as after. */
export function Starting({ text }: { text: string }) {
  return (
    <>
      <h1>{texts.appName}</h1>
      <Loading text={text} />
      <div class="skeleton" aria-hidden="true" />
      <div class="skeleton" aria-hidden="true" />
    </>
  );
}
