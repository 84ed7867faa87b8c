import { texts } from "../texts.ts";
import { Heading } from "./heading.tsx";
import { Loading } from "./spinner.tsx";

/** The page before there is anything to show, of the same shape as after. */
export function Starting({ text }: { text: string }) {
  return (
    <>
      <Heading takeFocus={false}>{texts.appName}</Heading>
      <Loading text={text} />
      <div class="skeleton" aria-hidden="true" />
      <div class="skeleton" aria-hidden="true" />
    </>
  );
}
