// SPDX-License-Identifier: Apache-2.0
//! VM templates: guests that were saved before they had a sandbox, and go on many times.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use protocols::agent::{ReseedRandomDevRequest, SetGuestDateTimeRequest};
use tests::figures::Figures;
use tests::net::interface;
use tests::story::say;
use tests::template::Template;
use tests::vm::Guest;
use tests::{Vm, vm_story};

/// In 2030.
const THEN: i64 = 1_900_000_000;

/// How many guests go on. Those of higher numbers are booted instead.
const CLONES: u8 = 10;

/// Who comes after whom. Two at a time, so that boots and clones have the same load beside them.
const LANES: [&[u8]; 2] = [&[0, 10, 2, 4, 6, 8], &[1, 3, 11, 5, 7, 12, 9]];

/// All have a card from the start, with one address.
fn shape(guest: Guest) -> Guest {
    guest.card("02:00:00:00:00:ff")
}

/// The guest's seconds since 1970, and bytes that no other guest may have.
const UNIQUE: &str = "date +%s; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo";

/// What was seen of a guest.
struct Seen {
    number: u8,
    /// Milliseconds from QEMU's start to the container's output.
    ready: u128,
    random: String,
    /// Random bytes that it had before it was given a seed, of those that were asked.
    saved: Option<String>,
    /// What there is of everything, of those that were counted.
    counts: Option<String>,
}

async fn unique(vm: &Vm, id: &str) -> (i64, String) {
    let output = vm.sh(id, UNIQUE).await;
    let (time, random) = output.ok().split_once('\n').expect("two lines");
    (time.parse().expect("seconds"), random.to_owned())
}

/// What a host does with a guest that goes on from a template, up to its sandbox: its random bytes, its clock, its name and its card.
async fn make_its_own(vm: &Vm, number: u8) {
    let mut seed = ReseedRandomDevRequest::new();
    seed.data = vec![number; 512];
    let seeded = vm.rpc().reseed_random_dev(&seed).await;
    seeded.unwrap_or_else(|e| panic!("ReseedRandomDev: {e}"));
    let mut time = SetGuestDateTimeRequest::new();
    time.Sec = THEN + i64::from(number) * 1000;
    let set = vm.rpc().set_guest_date_time(&time).await;
    set.unwrap_or_else(|e| panic!("SetGuestDateTime: {e}"));
    let name = format!("guest{number}");
    vm.create_sandbox(|request| request.hostname = name).await;
    let address = format!("10.0.0.{}/24", number + 1);
    vm.interface(interface("eth0", &mac(number), &[&address]))
        .await;
}

/// The hardware address that the host gives a guest.
fn mac(number: u8) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

/// All that a container sees is this guest's own, and so is what the network sees of it. Gives the random bytes.
async fn expect_its_own(vm: &Vm, number: u8) -> (String, u128) {
    let script = format!(
        "{UNIQUE}; hostname; cat /sys/class/net/eth0/address; ip -4 -o addr show eth0 | grep -c ' 10.0.0.{}/24 '",
        number + 1
    );
    let output = vm.sh("own", &script).await;
    let ready = vm.machine().times().spawn.elapsed().as_millis();
    let lines: Vec<&str> = output.ok().lines().collect();
    let [time, random, hostname, address, "1"] = lines[..] else {
        panic!("{output:?}");
    };
    let set = THEN + i64::from(number) * 1000;
    let time: i64 = time.parse().expect("seconds");
    assert!((set..set + 900).contains(&time), "{time}");
    assert_eq!(hostname, format!("guest{number}"));
    assert_eq!(address, mac(number));
    assert_eq!(vm.monitor().await.mac_of("card").await, address);
    (random.to_owned(), ready)
}

/// The guest's own clock and random bytes, before anybody sets them.
async fn as_it_was_saved(vm: &Vm) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let (time, random) = unique(vm, "saved").await;
    let late = i64::try_from(now).expect("not that late") - time;
    say(&format!("a guest goes on with its clock {late} s behind"));
    random
}

/// What there is of everything in the guest, and that news come to who asks now, not to who asked when it was saved.
async fn everything(vm: &Vm) -> String {
    let probe = vm.probe("probe").await;
    let counts = Figures::of(&probe, "").await.counts;
    let limit = |linux: &mut protocols::oci::Linux| {
        let resources = linux.Resources.mut_or_insert_default();
        resources.Memory.mut_or_insert_default().Limit = 24 << 20;
    };
    let hog = vm
        .container("hog")
        .linux(limit)
        .args(&["tail", "/dev/zero"]);
    assert_eq!(hog.start().await.wait().await, 137);
    assert_eq!(vm.oom_event().await, "hog");
    counts
}

async fn live(template: &Template, number: u8) -> Seen {
    let is_clone = number < CLONES;
    let vm = match is_clone {
        true => template.restore().await,
        false => Vm::boot(shape).await,
    };
    let looking = Instant::now();
    let saved = match number {
        0 | 1 => Some(as_it_was_saved(&vm).await),
        _ => None,
    };
    let looked = looking.elapsed().as_millis();
    make_its_own(&vm, number).await;
    let (random, ready) = expect_its_own(&vm, number).await;
    let counts = match number {
        2 | CLONES => Some(everything(&vm).await),
        _ => None,
    };
    vm.expect_alive().await;
    vm.expect_power_off().await;
    Seen {
        number,
        ready: ready - looked,
        random,
        saved,
        counts,
    }
}

async fn lane(template: &Template, numbers: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for &number in numbers {
        seen.push(live(template, number).await);
    }
    seen
}

fn median(mut figures: Vec<u128>) -> u128 {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

#[test]
fn guests_go_on_from_a_template() {
    vm_story(async {
        let template = Template::make(shape).await;
        let [one, two] = LANES.map(|numbers| lane(&template, numbers));
        let (mut all, two) = tokio::join!(one, two);
        all.extend(two);
        let random: BTreeSet<_> = all.iter().map(|guest| &guest.random).collect();
        assert!(random.len() == all.len() && random.iter().all(|r| r.len() == 64));
        let mut saved = all.iter().flat_map(|guest| &guest.saved);
        assert!(saved.all(|bytes| !random.contains(bytes)));
        // What was open when the template was saved is closed.
        let counts: Vec<_> = all.iter().flat_map(|guest| &guest.counts).collect();
        assert_eq!(counts[0], counts[1]);

        let (clones, boots): (Vec<_>, Vec<_>) = all.iter().partition(|g| g.number < CLONES);
        assert_eq!(clones.len(), usize::from(CLONES));
        let ready = |guests: Vec<&Seen>| median(guests.iter().map(|g| g.ready).collect());
        let (clones, boots) = (ready(clones), ready(boots));
        say(&format!(
            "a container from a template after {clones} ms, from a boot after {boots} ms (medians)"
        ));
    });
}
