// SPDX-License-Identifier: Apache-2.0
//! One VM with one container in it, from start to power-off, while the host's streams and signals are passed on.

use std::future::{Future, pending};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{empty, stderr, stdin, stdout};

use super::plan::Plan;
use super::signals::Signals;
use super::streams::{StreamError, copy_input, copy_output};
use super::{Interrupted, NotStarted};
use crate::client::{Agent, ClientError, Output, Process};
use crate::terminal::{self, RawTerminal};
use crate::timings::Timings;
use crate::vm::Vm;

/// How long the boot may take, to the agent's first answer.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// How long the agent may take to put the container away and power the VM off before it is killed.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(10);
/// From this many Ctrl-C on (SIGINT, SIGTERM) the container is killed: its process may ignore them, as the first one of a pid namespace does by default.
const PATIENCE: u32 = 3;
/// From this many on we do not wait for the container's end either.
const NO_PATIENCE: u32 = 5;
/// The exit code of a program that SIGPIPE ended, which is what a closed output means to us.
const BROKEN_PIPE: u8 = 128 + 13;

/// Runs the plan; the exit code of the container's process.
pub async fn run(plan: &Plan, timings: &mut Timings) -> Result<u8> {
    let mut signals = Signals::install().context("Cannot receive signals")?;
    let vm = Vm::start(plan.vm.clone()).await?;
    let mut agent = None;
    let result = with_vm(plan, &vm, &mut agent, &mut signals, timings).await;
    let result = result.inspect_err(|error| {
        if !error.is::<Interrupted>() && !error.is::<NotStarted>() {
            eprintln!("{}", vm.report());
        }
    });
    timings.end("process");
    if plan.vm.keep_dir {
        eprintln!("The VM's logs are in {}", vm.dir().display());
    }
    power_off(
        vm,
        agent,
        !matches!(&result, Err(e) if e.is::<Interrupted>()),
    )
    .await;
    timings.end("power-off");
    result
}

/// Ends the VM: by the agent, if it answers and `patient`, else by force.
async fn power_off(vm: Vm, agent: Option<Agent>, patient: bool) {
    if let Some(agent) = agent.filter(|_| patient && vm.exited().is_none()) {
        // The answer may be lost in the power-off; what counts is QEMU's end.
        let destroy = tokio::time::timeout(POWER_OFF_TIMEOUT, agent.destroy_sandbox()).await;
        if !matches!(destroy, Ok(Err(ClientError::Status { .. }))) {
            let _ = vm.wait_exit(POWER_OFF_TIMEOUT).await;
        }
    }
    vm.stop().await;
}

async fn with_vm(
    plan: &Plan,
    vm: &Vm,
    agent: &mut Option<Agent>,
    signals: &mut Signals,
    timings: &mut Timings,
) -> Result<u8> {
    let start = async {
        let agent = agent.insert(Agent::connect(vm, BOOT_TIMEOUT).await?);
        boot_timings(vm, timings);
        agent.create_sandbox(&plan.sandbox).await?;
        timings.end("sandbox");
        let started = start_container(agent, plan).await;
        timings.end("container");
        started?;
        Ok::<_, anyhow::Error>(&*agent)
    };
    let agent = tokio::select! {
        agent = unless_gone(vm, start) => agent?,
        number = signals.next_ending() => return Err(Interrupted(number).into()),
    };
    let _raw = raw_terminal(plan)?;
    let id = Process::init(&plan.id);
    let input = async {
        match (plan.interactive, plan.terminal) {
            (true, terminal) => copy_input(agent, &id, stdin(), !terminal).await,
            // Nothing will come: the process is told at once, as if it read from /dev/null.
            (false, false) => copy_input(agent, &id, empty(), true).await,
            (false, true) => {}
        }
        pending::<()>().await;
    };
    tokio::select! {
        code = unless_gone(vm, process(agent, &id, plan.terminal)) => code,
        error = forward(agent, &id, plan.terminal, signals) => Err(error.into()),
        () = input => unreachable_input(),
    }
}

/// `input` never ends; its type cannot say so.
fn unreachable_input() -> Result<u8> {
    anyhow::bail!("Standard input was given up")
}

/// Takes the boot's stations from the console.
fn boot_timings(vm: &Vm, timings: &mut Timings) {
    let times = vm.times();
    timings.end_at("helpers", times.spawn);
    if let Some(banner) = times.banner {
        timings.end_at("firmware", banner);
    }
    if let Some(init) = times.init {
        timings.end_at("kernel", init);
    }
    timings.end("init");
}

async fn start_container(agent: &Agent, plan: &Plan) -> Result<()> {
    let create = async {
        agent.create_container(&plan.container).await?;
        if let Some((rows, columns)) = terminal::size().filter(|_| plan.terminal) {
            agent
                .resize(&Process::init(&plan.id), rows, columns)
                .await?;
        }
        agent.start_container(&plan.id).await
    };
    create
        .await
        .map_err(|error| match NotStarted::classify(&error) {
            Some(code) => NotStarted {
                code,
                source: error,
            }
            .into(),
            None => error.into(),
        })
}

fn raw_terminal(plan: &Plan) -> Result<Option<RawTerminal>> {
    if plan.terminal && plan.interactive {
        return RawTerminal::enter()
            .map(Some)
            .context("Cannot set the terminal to raw mode");
    }
    Ok(None)
}

/// Copies the output to its end, then asks for the exit code: the order every host keeps, since the agent forgets a process that
/// was waited for.
async fn process(agent: &Agent, id: &Process, terminal: bool) -> Result<u8> {
    let out = copy_output(agent, id, Output::Stdout, stdout());
    let err = async {
        // A terminal has one stream for both.
        if terminal {
            Ok(())
        } else {
            copy_output(agent, id, Output::Stderr, stderr()).await
        }
    };
    match tokio::try_join!(out, err) {
        Ok(_) => {}
        Err(StreamError::Local(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => {
            return Ok(BROKEN_PIPE);
        }
        Err(error) => return Err(error.into()),
    }
    let code = agent.wait(id).await?;
    Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// Passes signals on until the user has had enough.
async fn forward(
    agent: &Agent,
    id: &Process,
    terminal: bool,
    signals: &mut Signals,
) -> Interrupted {
    let mut endings = 0;
    loop {
        let number = signals.next().await;
        if number == libc::SIGWINCH {
            if let Some((rows, columns)) = terminal::size().filter(|_| terminal) {
                // The process may have ended.
                let _ = agent.resize(id, rows, columns).await;
            }
            continue;
        }
        if matches!(number, libc::SIGINT | libc::SIGTERM) {
            endings += 1;
        }
        let sent = match endings {
            NO_PATIENCE.. => return Interrupted(number),
            PATIENCE.. => {
                agent
                    .signal(&Process::exec(&id.container, ""), libc::SIGKILL)
                    .await
            }
            _ => agent.signal(id, number).await,
        };
        // The process may have ended.
        drop(sent);
    }
}

/// Gives up waiting for the agent when QEMU ends: its vsock device may not tell.
async fn unless_gone<T>(vm: &Vm, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        error = vm.ended() => Err(error.into()),
    }
}
