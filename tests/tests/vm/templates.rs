// SPDX-License-Identifier: Apache-2.0
//! VM templates: guests that were saved before they had a sandbox, and go on several times.

use std::collections::BTreeSet;
use std::time::Instant;

use protocols::agent::{ReseedRandomDevRequest, SetGuestDateTimeRequest};
use tests::story::say;
use tests::template::Template;
use tests::{Vm, vm_story};

/// In 2030.
const THEN: i64 = 1_900_000_000;

/// What a host does with a guest that goes on from a template, up to a container that ran: its clock, its random bytes and its host name.
async fn use_up(vm: &Vm, number: u8) -> (i64, String, String) {
    let mut seed = ReseedRandomDevRequest::new();
    seed.data = vec![number; 512];
    vm.rpc()
        .reseed_random_dev(&seed)
        .await
        .expect("ReseedRandomDev");
    let mut time = SetGuestDateTimeRequest::new();
    time.Sec = THEN + i64::from(number) * 1000;
    vm.rpc()
        .set_guest_date_time(&time)
        .await
        .expect("SetGuestDateTime");
    vm.create_sandbox(|request| request.hostname = format!("clone{number}"))
        .await;
    let script = "date +%s; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; hostname";
    let output = vm.sh("clone", script).await;
    let mut lines = output.ok().lines().map(str::to_owned);
    let mut line = || lines.next().expect("three lines");
    (line().parse().expect("seconds"), line(), line())
}

#[test]
fn guests_go_on_from_a_template() {
    vm_story(async {
        let template = Template::make().await;
        let mut seen = BTreeSet::new();
        let mut figures = Vec::new();
        for number in 0..3 {
            let began = Instant::now();
            let vm = template.restore().await;
            let (time, random, hostname) = use_up(&vm, number).await;
            figures.push(began.elapsed().as_millis());
            let set = THEN + i64::from(number) * 1000;
            assert!((set..set + 900).contains(&time), "{time}");
            assert!(random.len() == 64 && seen.insert(random), "{seen:?}");
            assert_eq!(hostname, format!("clone{number}"));
            vm.expect_alive().await;
            vm.expect_power_off().await;
        }
        let began = Instant::now();
        let vm = Vm::boot(|guest| guest).await;
        use_up(&vm, 3).await;
        let cold = began.elapsed().as_millis();
        say(&format!(
            "a container from a template after {figures:?} ms, from a cold boot after {cold} ms"
        ));
        vm.expect_power_off().await;
    });
}
