// SPDX-License-Identifier: Apache-2.0
//! `keelson`: PID 1 of the guest, an ordinary service, or the launcher.

use std::os::fd::AsFd;
use std::process::ExitCode;

use agent::launch::{LAUNCHER_WORD, server};
use agent::rpc::API_VERSION;
use agent::run;

fn main() -> ExitCode {
    // The kernel hands words that it does not know to PID 1 as arguments; they
    // are not meant for us.
    if std::process::id() == 1 {
        run::as_init();
    }
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|word| word.to_str()) {
        None => run::as_service(),
        Some("--version" | "-v") => {
            println!(
                "keelson version {} (api version: {API_VERSION})",
                env!("CARGO_PKG_VERSION")
            );
            ExitCode::SUCCESS
        }
        Some(LAUNCHER_WORD) => match std::io::stdin().as_fd().try_clone_to_owned() {
            Ok(socket) => server::serve(socket),
            Err(_) => ExitCode::FAILURE,
        },
        Some(other) => {
            eprintln!(
                "keelson: unknown argument '{other}'\nhint: it takes none but --version; see README.md for its kernel words and environment"
            );
            ExitCode::from(2)
        }
    }
}
