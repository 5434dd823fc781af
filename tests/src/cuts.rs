// SPDX-License-Identifier: Apache-2.0
//! Hosts that go away in the middle of a request: what they asked for is done completely, or not at all.
//!
//! [`rounds`] creates, executes and removes, each time over a connection that is cut at a random point: after some bytes of the
//! frame, right after all of them, or while the answer is waited for. Then it looks, over another connection, at what became of it. No
//! round is a matter of time: how long a cut waits is a number of other requests' answers.

use protobuf::Message;
use protocols::agent::{ExecProcessRequest, RemoveContainerRequest};

use crate::agent::{Agent, Code, Refusal};
use crate::container::{Container, READ, Stream};
use crate::wire::{self, frame};
use crate::{spec, story};

/// The variable that repeats a run: the seed that it printed.
pub const SEED: &str = "KEELSON_TEST_SEED";

/// How many are busy with rounds at the same time.
const HANDS: u64 = 4;

/// For how many answers a request may go on after its connection is cut, before it counts as lost. It takes a dozen.
const PATIENCE: usize = 100_000;

/// Numbers that look random, the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }
}

/// Whether the agent can have seen the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The frame was not complete.
    Within,
    /// It was.
    After,
}

/// How often requests were cut where, for the log.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    within: usize,
    after: usize,
    /// Of those, how often nothing had come of it when it was looked for.
    without: usize,
}

/// Sends a request and cuts the connection at a random point.
async fn cut(agent: &Agent, dice: &mut Dice, method: &str, message: &impl Message) -> Cut {
    let message = message.write_to_bytes().expect("it encodes");
    let request = wire::envelope("grpc.AgentService", method, &message);
    let bytes = frame(1, wire::REQUEST, &request);
    let mut wire = agent.wire().await;
    match dice.below(4) {
        0 => {
            wire.send_bytes(&bytes[..dice.below(bytes.len())]).await;
            Cut::Within
        }
        1 => {
            wire.send_bytes(&bytes).await;
            Cut::After
        }
        2 => {
            // In two pieces, with something else between them.
            let (head, tail) = bytes.split_at(dice.below(bytes.len()));
            wire.send_bytes(head).await;
            answers(agent, dice.below(3)).await;
            wire.send_bytes(tail).await;
            Cut::After
        }
        _ => {
            wire.send_bytes(&bytes).await;
            answers(agent, dice.below(40)).await;
            Cut::After
        }
    }
}

/// Lets time pass for the agent: as much as `count` answers take.
async fn answers(agent: &Agent, count: usize) {
    for _ in 0..count {
        agent.rpc().check().await.expect("Check is answered");
    }
}

/// Asks again until the earlier request for the same is through, which a refusal that is not `settled` says it is not.
async fn settle<T, F: Future<Output = Result<T, Refusal>>>(
    agent: &Agent,
    what: &str,
    mut ask: impl FnMut() -> F,
    settled: impl Fn(&Refusal) -> bool,
) -> Result<T, Refusal> {
    let mut last = String::new();
    for _ in 0..PATIENCE {
        match ask().await {
            Err(refusal) if !settled(&refusal) => last = refusal.to_string(),
            answer => return answer,
        }
        answers(agent, 1).await;
    }
    panic!("{what} is neither there nor gone: {last}");
}

fn is(refusal: &Refusal, code: Code) -> bool {
    assert!(refusal.code.is_some(), "{refusal}");
    refusal.code == Some(code)
}

/// CreateContainer is cut. Afterwards the container can be started and ends as it should, or the id is free.
async fn create(agent: &Agent, dice: &mut Dice, id: &str, tally: &mut Tally) {
    let code = dice.below(200) as i32;
    let request = agent
        .container(id)
        .sh(&format!("echo ran >> /tmp/{id}; exit {code}"))
        .into_request();
    let cut = cut(agent, dice, "CreateContainer", &request).await;
    let c = Container::known(agent, id);
    let again = agent.rpc().create_container(&request).await;
    match again {
        Ok(_) => tally.without += 1,
        Err(refusal) => {
            assert_eq!(cut, Cut::After, "a part of a request was carried out");
            assert!(is(&refusal, Code::ALREADY_EXISTS), "{refusal}");
        }
    }
    // Nothing may be refused for good: an id that is taken has a container.
    let started = settle(agent, id, || c.try_start(), |_| false).await;
    started.expect("it starts");
    assert_eq!(c.wait().await, code, "{id}");
    c.remove().await;
    expect_once(agent, id).await;
    tally.count(cut);
}

/// ExecProcess is cut. Afterwards there is a process of that name, with its output and exit code, or the name is free.
async fn exec(agent: &Agent, dice: &mut Dice, id: &str, tally: &mut Tally) {
    let c = sleeper(agent, id).await;
    let code = dice.below(200);
    let script = format!("echo ran >> /tmp/{id}; echo out; exit {code}");
    let mut request = ExecProcessRequest::new();
    request.container_id = id.to_owned();
    request.exec_id = "cut".to_owned();
    request.process = Some(spec::process(&["sh", "-c", &script])).into();
    let cut = cut(agent, dice, "ExecProcess", &request).await;
    match agent.rpc().exec_process(&request).await {
        Ok(_) => tally.without += 1,
        Err(refusal) => {
            assert_eq!(cut, Cut::After, "a part of a request was carried out");
            assert!(is(&refusal, Code::ALREADY_EXISTS), "{refusal}");
        }
    }
    let process = c.known_process("cut");
    let unknown = |refusal: &Refusal| is(refusal, Code::NOT_FOUND);
    let ask = || process.try_read(Stream::Stdout, READ);
    let output = settle(agent, id, ask, |refusal| !unknown(refusal)).await;
    assert_eq!(output.expect("it runs"), b"out\n", "{id}");
    assert_eq!(process.wait().await as usize, code, "{id}");
    c.kill_and_remove().await;
    expect_once(agent, id).await;
    tally.count(cut);
}

/// RemoveContainer is cut. Afterwards the container is as it was, or it is gone: never in between for good.
async fn remove(agent: &Agent, dice: &mut Dice, id: &str, tally: &mut Tally) {
    let c = sleeper(agent, id).await;
    if dice.below(2) == 0 {
        c.exec(&["sleep", "100000"]).start().await;
    }
    let mut request = RemoveContainerRequest::new();
    request.container_id = id.to_owned();
    let cut = cut(agent, dice, "RemoveContainer", &request).await;
    if cut == Cut::Within {
        assert_eq!(c.sh("echo whole").await.ok(), "whole");
        tally.without += 1;
    }
    // What is being removed refuses a second removal until it is gone, and is unknown then.
    // Which code that has is not the same for all requests; the text is what hosts look for.
    let unknown = |refusal: &Refusal| refusal.text.contains("Invalid container id");
    let removed = settle(agent, id, || c.try_remove(), unknown).await;
    if let Err(refusal) = removed {
        assert_eq!(cut, Cut::After, "{refusal}");
    }
    // The id is free, with nothing left in its way.
    let again = agent.sh(id, &format!("echo ran >> /tmp/{id}")).await;
    assert_eq!(again.code, 0, "{again:?}");
    expect_once(agent, id).await;
    tally.count(cut);
}

async fn sleeper(agent: &Agent, id: &str) -> Container {
    agent.container(id).args(&["sleep", "100000"]).start().await
}

/// Insists that what a round asked for has happened once. Containers share their root's files.
async fn expect_once(agent: &Agent, id: &str) {
    let ran = agent
        .sh(
            &format!("{id}-after"),
            &format!("cat /tmp/{id}; rm /tmp/{id}"),
        )
        .await;
    assert_eq!(ran.ok(), "ran", "{id} happened once");
}

impl Tally {
    fn count(&mut self, cut: Cut) {
        match cut {
            Cut::Within => self.within += 1,
            Cut::After => self.after += 1,
        }
    }
}

/// Cuts `count` requests, each kind in turn, and insists that nothing is done by halves.
pub async fn rounds(agent: &Agent, count: u64) {
    let seed = std::env::var(SEED)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand_seed);
    story::say(&format!("{count} requests cut, {SEED}={seed}"));
    let hands: Vec<_> = (0..HANDS)
        .map(|hand| {
            let agent = agent.clone();
            tokio::spawn(async move {
                let agent = agent.another_connection().await;
                let mut tally = Tally::default();
                for round in (hand..count).step_by(HANDS as usize) {
                    // A round's dice are its own, so that it falls the same way whatever the others do.
                    let mut dice = Dice(seed ^ (round << 32));
                    let id = format!("cut-{round}");
                    match round % 3 {
                        0 => create(&agent, &mut dice, &id, &mut tally).await,
                        1 => exec(&agent, &mut dice, &id, &mut tally).await,
                        _ => remove(&agent, &mut dice, &id, &mut tally).await,
                    }
                }
                tally
            })
        })
        .collect();
    let mut all = Tally::default();
    for hand in hands {
        let tally = hand
            .await
            .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        all.within += tally.within;
        all.after += tally.after;
        all.without += tally.without;
    }
    story::say(&format!(
        "{} cut within the request, {} after it; {} had left nothing",
        all.within, all.after, all.without
    ));
    assert_eq!((all.within + all.after) as u64, count);
    // A run that cuts nothing proves nothing.
    assert!(all.within > 0 && all.after > all.without, "{all:?}");
}

/// Another number in each run.
fn rand_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("it is after 1970").as_nanos() as u64 >> 10
}
