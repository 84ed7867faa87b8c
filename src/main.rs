//! The program: arguments, configuration, log, runtime, signals, exit codes.

mod cli;
mod supervisor;
mod welcome;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use cli::{Arguments, Command};
use jira_connect_proxy::{
    config::{Config, ENV_PREFIX},
    relay::{self, Relay, Reload, StartError},
    telemetry,
};
use supervisor::Pulse;
use tokio::signal::unix::{Signal, SignalKind, signal};
use welcome::Welcome;

/// `EX_USAGE`: configuration or arguments are wrong.
const EXIT_USAGE: u8 = 64;

/// Where the configuration may stand if nobody says where: here, or where a package puts it.
const CONFIG_PLACES: [&str; 2] = ["proxy.toml", "/etc/jira-connect-proxy/proxy.toml"];

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // --help and --version come this way too.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let command = arguments.command.unwrap_or(Command::Serve);
    if command.prints_itself() {
        return match cli::print_itself(&command) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.into()),
        };
    }
    let file = arguments.source.config.or_else(|| {
        let places = CONFIG_PLACES.map(PathBuf::from);
        places.into_iter().find(|place| place.exists())
    });
    let config = match load(file.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprint!("{error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match command {
        Command::Check => check(&config, arguments.remote.json),
        Command::Serve => match serve(config, file) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        command => match cli::run(command, &arguments.remote, &config) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => failed(&error),
        },
    }
}

/// Tells what is odd about a configuration that can be used.
fn check(config: &Config, json: bool) -> ExitCode {
    let mut warnings = config.warnings.clone();
    match relay::check_files(config) {
        Ok(more) => warnings.extend(more),
        Err(error) => return failed(&error.into()),
    }
    if json {
        println!("{:#}", serde_json::json!({ "warnings": warnings }));
        return ExitCode::SUCCESS;
    }
    for warning in &warnings {
        println!("warning: {warning}");
    }
    println!("the configuration is good");
    ExitCode::SUCCESS
}

/// Says why, and gives the exit code.
fn failed(error: &anyhow::Error) -> ExitCode {
    // Nobody reads any more (`| head`): that is how it was meant.
    let io = error.downcast_ref::<std::io::Error>();
    if io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    eprintln!("jira-connect-proxy: {error:#}");
    match error.downcast_ref::<StartError>() {
        Some(start) if start.is_configuration() => ExitCode::from(EXIT_USAGE),
        _ => ExitCode::FAILURE,
    }
}

/// Only what is ours, so that an odd variable of somebody else's does no harm.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(ENV_PREFIX))
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
}

fn load(file: Option<&Path>) -> Result<Config, jira_connect_proxy::config::ConfigError> {
    Config::load(file, environment())
}

#[tokio::main]
async fn serve(config: Config, file: Option<PathBuf>) -> anyhow::Result<()> {
    let _log = telemetry::install(&config.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be heard")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be heard")?;
    // Heard from here on, so that an early SIGHUP does not end the process.
    let hang_ups = signal(SignalKind::hangup()).context("SIGHUP can't be heard")?;
    let welcome = Welcome::of(&config);
    let (socket, encrypted) = (config.admin.socket.clone(), config.admin.tls.is_some());
    let relay = Relay::bind(config).await?;
    // Nobody may be reading; that is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{}", welcome.text(relay.addresses()));
    let hang_up = tokio::spawn(reload_on_hang_up(hang_ups, relay.reload(), file));
    let pulse = match (socket, encrypted) {
        (Some(path), _) => Pulse::Unix(path),
        (None, false) => Pulse::Plain(relay.addresses().admin),
        (None, true) => Pulse::Encrypted(relay.addresses().admin, relay.turning()),
    };
    let watchdog = tokio::spawn(supervisor::watchdog(pulse));
    supervisor::ready();
    relay
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            hang_up.abort();
            supervisor::stopping();
        })
        .await?;
    watchdog.abort();
    tracing::info!("stopped");
    Ok(())
}

async fn reload_on_hang_up(mut hang_ups: Signal, reload: Reload, file: Option<PathBuf>) {
    while hang_ups.recv().await.is_some() {
        supervisor::reloading();
        match load(file.as_deref()) {
            Ok(config) => reload.apply(&config).await,
            Err(error) => tracing::error!("nothing was changed: {error}"),
        }
        supervisor::ready();
    }
}
