import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import { type Api, type Cause, causeOf, type Link, type SignIn } from "../api.ts";
import { exchangeCode, GitlabError, type GitlabSession, openSession } from "../gitlab.ts";
import { type Attempt, authorize, prepareAttempt, SignInError } from "../sign_in.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Failure } from "./failure.tsx";
import { LocalNetworkHelp } from "./local_network_help.tsx";
import { SectionMessage } from "./section_message.tsx";
import { Unreachable } from "./unreachable.tsx";

interface SignInPanelProps {
  api: Api;
  link: Link;
  onSignedIn: (session: GitlabSession) => void;
}

interface Ready {
  signIn: SignIn;
  attempt: Attempt;
}

export function SignInPanel({ api, link, onSignedIn }: SignInPanelProps) {
  const [ready, setReady] = useState<Ready | null>(null);
  const [preparing, setPreparing] = useState(true);
  const [step, setStep] = useState<"idle" | "waiting" | "finishing">("idle");
  const [problem, setProblem] = useState<Cause | "unreachable" | null>(null);
  const cancel = useRef<AbortController | null>(null);
  const address = addressOf(link.instance_url);

  const prepare = useCallback(async () => {
    setPreparing(true);
    try {
      const signIn = await api.signIn(link.id);
      setReady({ signIn, attempt: await prepareAttempt(signIn) });
    } catch (error) {
      setProblem(problemOf(error));
    } finally {
      setPreparing(false);
    }
  }, [api, link.id]);

  useEffect(() => {
    prepare();
    return () => cancel.current?.abort();
  }, [prepare]);

  const signIn = async ({ signIn, attempt }: Ready) => {
    setProblem(null);
    setStep("waiting");
    cancel.current = new AbortController();
    try {
      const code = await authorize(attempt, cancel.current.signal);
      setStep("finishing");
      const token = await exchangeCode(signIn, code, attempt.codeVerifier);
      onSignedIn(await openSession(signIn, token));
    } catch (error) {
      setProblem(problemOf(error));
      setStep("idle");
      // A state and a verifier serve once.
      setReady(null);
      prepare();
    }
  };

  return (
    <section class="panel" aria-labelledby="sign-in">
      <h2 id="sign-in">{texts.signInTitle}</h2>
      <p>{texts.signInText(address)}</p>
      <p class="subtle">{texts.signInPrivacy}</p>
      {ready?.signIn.private_network && problem !== "unreachable" && (
        <SectionMessage appearance="information" title={texts.privateNetworkTitle}>
          <p>{texts.privateNetworkText}</p>
          <LocalNetworkHelp />
        </SectionMessage>
      )}
      {problem === "unreachable" && (
        <Unreachable
          instanceUrl={link.instance_url}
          privateNetwork={ready?.signIn.private_network ?? false}
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
      {(ready || preparing) && (
        <div class="button-row">
          <Button
            appearance="primary"
            busy={step !== "idle"}
            disabled={!ready}
            onClick={() => ready && signIn(ready)}
          >
            {texts.signIn}
          </Button>
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
    </section>
  );
}

function problemOf(error: unknown): Cause | "unreachable" {
  if (error instanceof SignInError) {
    const { message, hint } = texts.signInFailures[error.failure];
    const said = error.detail ? texts.groupFailure(message, error.detail) : message;
    return { code: error.failure, message: said, hint, id: null };
  }
  if (error instanceof GitlabError) {
    return error.failure === "unreachable"
      ? "unreachable"
      : { code: error.failure, message: error.message, hint: null, id: null };
  }
  return causeOf(error);
}
