// SPDX-License-Identifier: Apache-2.0
//! `oci`: the command line of an OCI runtime over the agent's protocol on a unix socket, without a VM, so that the public validation
//! suites can be run against the agent as they are.
//!
//! One agent serves all containers of a `--root` directory: it is started when it is needed and ends with the last container. It runs
//! among the caller's namespaces but for mounts, so that pids and namespace paths mean the same to both. Nothing here does an
//! agent's work: what the protocol cannot carry is refused by the field's name.

mod cli;
mod commands;
mod console;
mod host;
mod record;
mod relay;
mod report;
mod wire;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let options = cli::Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(commands::run(&options));
            // A read of our standard input may never end.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let text = format!("{error:#}\nHint: {}", cli::hint(&error, &options));
            report::log(&options, &text);
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}
