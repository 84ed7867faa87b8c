//! The main job in a minute: one Jira site, two GitLab instances, one relay between, all in this process.
//!
//! Jira and GitLab are simulated (`tests/fakes`) but speak over real sockets; the relay is the real one,
//! with its store in a temporary folder. Every claim of the summary is checked, and a false one ends the demo.

#![allow(unreachable_pub, reason = "nothing of a program is reachable")]
#![expect(
    clippy::indexing_slicing,
    reason = "JSON is null where it holds nothing"
)]

mod acts;
#[path = "../fakes/mod.rs"]
mod fakes;
mod hops;
mod narrator;
mod secrets;
mod stage;
mod story;

use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use stage::Stage;
use story::Story;

/// `EX_USAGE`: the arguments are wrong.
const EXIT_USAGE: u8 = 64;

/// Shows what jira-connect-proxy does, with a simulated Jira Cloud and two simulated GitLab instances.
///
/// Walks through install, link, secret rotation, resend, and an uninstall while one GitLab is down. Prints
/// each hop with the decoded claims of its token; secrets and tokens are masked. All on loopback, with
/// the relay's store in a temporary folder.
#[derive(Debug, Parser)]
#[command(
    name = "demo",
    after_help = "Examples:
  cargo run --release --example demo             the walk, then the summary of what was proven
  cargo run --release --example demo -- --stay   the same, then connected again and up until Ctrl-C

Exit codes: 0 everything was proven, 64 wrong arguments, 1 anything else."
)]
struct Arguments {
    /// Keep everything up after the walk, to look around, until Ctrl-C.
    #[arg(long)]
    stay: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // An error means that nobody reads it.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    // A task of its own, so that a fake that panics ends in an exit code of ours.
    match tokio::spawn(play(arguments.stay)).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("demo: a part of it panicked");
            ExitCode::FAILURE
        }
    }
}

/// The whole play. Ctrl-C ends it early, and in order, too.
async fn play(stay: bool) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("Ctrl-C can't be heard")?;
    let mut story = Story::begin(Stage::set().await?);
    let walked = tokio::select! {
        walked = story.walk(stay) => walked,
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
    };
    if let Err(error) = walked {
        // The first failure is the one to tell.
        let _ = story.stage.stop().await;
        return Err(error);
    }
    if stay {
        story.invite();
        interrupt.recv().await;
    }
    story.end().await
}
