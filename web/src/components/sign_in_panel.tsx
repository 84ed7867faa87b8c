import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import { type Api, type Cause, causeOf, type Link, type SignIn } from "../api.ts";
import { rescueFocus } from "../focus.ts";
import {
  causeOfGitlab,
  exchangeCode,
  GitlabError,
  type GitlabSession,
  openSession,
} from "../gitlab.ts";
import type { Host } from "../host.ts";
import { type LocalNetworkAccess, localNetworkAdvice } from "../local_network.ts";
import {
  type Attempt,
  type Authorization,
  authorize,
  prepareAttempt,
  SignInError,
  type SignInFailure,
} from "../sign_in.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Failure } from "./failure.tsx";
import { PasteCode } from "./paste_code.tsx";
import { SectionMessage } from "./section_message.tsx";
import { SetUpHelp } from "./set_up.tsx";
import { Loading } from "./spinner.tsx";
import { Unreachable } from "./unreachable.tsx";

interface SignInPanelProps {
  api: Api;
  host: Host;
  link: Link;
  localNetwork: LocalNetworkAccess | null;
  onSignedIn: (session: GitlabSession) => void;
}

// Codes of failures that what is set up in GitLab may have caused.
const SET_UP_WRONGLY = ["failed", "oauth_application_missing"];

interface Ready {
  signIn: SignIn;
  attempt: Attempt;
}

export function SignInPanel({ api, host, link, localNetwork, onSignedIn }: SignInPanelProps) {
  const [ready, setReady] = useState<Ready | null>(null);
  const [preparing, setPreparing] = useState(true);
  const [asked, setAsked] = useState(false);
  const [privateNetwork, setPrivateNetwork] = useState(false);
  const [step, setStep] = useState<"idle" | "waiting" | "finishing">("idle");
  const [problem, setProblem] = useState<Cause | "unreachable" | null>(null);
  // Perhaps, which only the person can see.
  const [cutOff, setCutOff] = useState(false);
  const cancel = useRef<AbortController | null>(null);
  const paste = useRef<Authorization["paste"]>(null);
  const gone = useRef(false);
  const address = addressOf(link.instance_url);

  const prepare = useCallback(async () => {
    setPreparing(true);
    try {
      const signIn = await api.signIn(link.id);
      setPrivateNetwork(signIn.private_network);
      setReady({ signIn, attempt: await prepareAttempt(signIn) });
    } catch (error) {
      setProblem(problemOf(error));
    } finally {
      setAsked(true);
      setPreparing(false);
    }
  }, [api, link.id]);

  useEffect(() => {
    gone.current = false;
    prepare();
    return () => {
      gone.current = true;
      cancel.current?.abort();
    };
  }, [prepare]);

  const signIn = async ({ signIn, attempt }: Ready, inTwo: boolean) => {
    setProblem(null);
    setStep("waiting");
    const abort = new AbortController();
    cancel.current = abort;
    try {
      const authorization = authorize(attempt, host, inTwo, abort.signal);
      paste.current = authorization.paste;
      const code = await authorization.code;
      setStep("finishing");
      const token = await exchangeCode(signIn, code, attempt.codeVerifier);
      onSignedIn(await openSession(signIn, token));
    } catch (error) {
      if (gone.current) {
        return;
      }
      const found = abort.signal.aborted ? null : problemOf(error);
      setProblem(found);
      setCutOff((before) => before || (found !== "unreachable" && found?.code === "popup_closed"));
      setStep("idle");
      // While the window of GitLab had it, nobody could watch the focus of this one.
      rescueFocus();
      // A state and a verifier serve once.
      setReady(null);
      prepare();
    }
  };

  // Shown when all is known that it says, so that nothing moves.
  if (!localNetwork || !asked) {
    return <Loading text={texts.signInPreparing} />;
  }
  return (
    <section class="panel" aria-labelledby="sign-in">
      <h2 id="sign-in">{texts.signInTitle}</h2>
      <p>{texts.signInText(address)}</p>
      <p class="subtle">{texts.signInPrivacy}</p>
      {privateNetwork && problem !== "unreachable" && (
        <SectionMessage appearance="information" title={texts.privateNetworkTitle}>
          <p>{texts.privateNetworkText}</p>
          <p>{adviceBefore(localNetwork)}</p>
        </SectionMessage>
      )}
      {problem === "unreachable" && (
        <Unreachable
          instanceUrl={link.instance_url}
          privateNetwork={privateNetwork}
          access={localNetwork}
        />
      )}
      {problem && problem !== "unreachable" && (
        <Failure
          cause={problem}
          actions={
            !ready &&
            !preparing && (
              <Button
                onClick={() => {
                  setProblem(null);
                  prepare();
                }}
              >
                {texts.tryAgain}
              </Button>
            )
          }
        />
      )}
      {problem && problem !== "unreachable" && SET_UP_WRONGLY.includes(problem.code) && (
        <SetUpHelp boot={host.boot} />
      )}
      {(ready || preparing) && (
        <div class="button-row">
          <Button
            appearance="primary"
            busy={step !== "idle"}
            disabled={!ready}
            onClick={() => ready && signIn(ready, false)}
          >
            {texts.signIn}
          </Button>
          {cutOff && step === "idle" && (
            <Button disabled={!ready} onClick={() => ready && signIn(ready, true)}>
              {texts.signInTwo}
            </Button>
          )}
          {step === "waiting" && (
            <Button appearance="subtle" onClick={() => cancel.current?.abort()}>
              {texts.cancel}
            </Button>
          )}
          <p class="subtle" role="status">
            {preparing && texts.signInPreparing}
            {step === "waiting" && texts.signInWaiting}
            {step === "finishing" && texts.signInFinishing}
          </p>
        </div>
      )}
      {step === "waiting" && paste.current && <PasteCode onPaste={paste.current} />}
    </section>
  );
}

// For who has not tried yet.
function adviceBefore(access: LocalNetworkAccess): string {
  switch (access) {
    case "granted":
      return texts.privateNetworkAllowed;
    case "denied":
    case "not_delegated":
      return texts.ifSigningInFails(localNetworkAdvice(access));
    case "prompt":
    case "unknown":
      return localNetworkAdvice(access);
  }
}

function problemOf(error: unknown): Cause | "unreachable" {
  if (error instanceof SignInError) {
    return explainedFailure(error.failure, error.detail);
  }
  if (error instanceof GitlabError) {
    switch (error.failure) {
      case "unreachable":
        return "unreachable";
      case "not_gitlab":
        return causeOfGitlab(error);
      default:
        return explainedFailure("failed", error.message);
    }
  }
  return causeOf(error);
}

function explainedFailure(failure: SignInFailure, detail: string | null): Cause {
  const { message, hint } = texts.signInFailures[failure];
  return {
    code: failure,
    message: detail ? texts.withDetail(message, detail) : message,
    hint,
    id: null,
  };
}
