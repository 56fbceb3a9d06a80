//! What people do with dead letters: see, change, take away, replay.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use demi_conductor::balance::fingerprint;
use demi_conductor::{Answer, Ask, Conductor, Outcome, Refusal};
use demi_platform::Request;

use super::posts::write_message_headers;
use super::Shell;
use crate::api;
use crate::calls::{Call, Origin};
use crate::chronicle::unix_ms;
use crate::clerk::LetterErrand;
use crate::kit::outcome_of_status;
use crate::problem::Problem;
use crate::store::{DeadLetter, LetterPage};

/// Letters that are replayed at once: enough to be quick, and few beside what a platform's queue takes.
const REPLAYS_MAX: usize = 128;
/// Those of one order.
const REPLAYED_MAX: usize = 64;
/// Conversations that are known to have failed again; beyond so many the rest of one is tried.
const STOPPED_MAX: usize = 1_000;

/// The letters that are under way again, or wait behind one that is.
#[derive(Default)]
pub(super) struct Replays {
    /// Each with its conversation; empty if it has none.
    under_way: BTreeMap<u64, String>,
    /// By conversation, as long as a letter of it is under way: those that come after it.
    behind: BTreeMap<String, VecDeque<(u64, DeadLetter)>>,
    /// Conversations of which a letter failed again since the first page of a replay was asked for: those of their letters that
    /// come with later pages stay as well.
    stopped: BTreeSet<String>,
}

impl Replays {
    fn len(&self) -> usize {
        self.under_way.len() + self.behind.values().map(VecDeque::len).sum::<usize>()
    }

    fn has(&self, id: u64) -> bool {
        self.under_way.contains_key(&id) || self.behind.values().flatten().any(|(behind, _)| *behind == id)
    }
}

impl Shell {
    /// Has the clerk see to dead letters; the client waits.
    pub(super) fn ask_for_letters(&mut self, place: usize, serial: u64, page: api::Page<'_>, request: &Request<'_>) {
        let errand = self.letter_errand(page, request);
        let problem = match errand {
            Ok(errand) => match self.clerk.as_ref().is_some_and(|clerk| clerk.letters(place, serial, errand)) {
                true => return,
                false => api::store_busy(),
            },
            Err(problem) => problem,
        };
        self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
    }

    fn letter_errand(&mut self, page: api::Page<'_>, request: &Request<'_>) -> Result<LetterErrand, Problem> {
        let (query, now) = (request.query(), unix_ms());
        let listing = || api::read_listing(query, now);
        Ok(match (page, request.method) {
            (api::Page::DeadLetters, "DELETE") => LetterErrand::Purge(api::read_purge(query, now)?),
            (api::Page::DeadLetter(id), "DELETE" | "PUT") if self.replays.has(id) => {
                let what = format!("dead letter {id} is being replayed; wait until that is over");
                return Err(Problem::new(409, what).code("replaying").retry_after(Duration::from_secs(1)));
            }
            (api::Page::DeadLetter(id), "DELETE") => LetterErrand::Remove(id),
            (api::Page::DeadLetter(id), "PUT") => {
                LetterErrand::Edit { id, content_type: request.content_type.to_owned(), body: request.body.to_vec() }
            }
            (api::Page::DeadLetter(id), _) => LetterErrand::Show(id),
            (api::Page::Replay(id), _) => {
                if self.replays.len() + REPLAYED_MAX > REPLAYS_MAX {
                    let what = "as many dead letters are replayed as may be at once";
                    return Err(Problem::new(503, what).code("replays_full").retry_after(Duration::from_secs(1)));
                }
                match id {
                    Some(id) => {
                        self.replays.stopped.clear();
                        LetterErrand::FetchOne(id)
                    }
                    None => {
                        let mut listing = listing()?;
                        if listing.after == 0 {
                            self.replays.stopped.clear();
                        }
                        listing.limit = listing.limit.min(REPLAYED_MAX);
                        LetterErrand::Fetch(listing)
                    }
                }
            }
            (_, _) => LetterErrand::List(listing()?),
        })
    }

    /// Puts letters to the conductor again, as calls for which nobody waits. One that is under way already is left out; one
    /// whose conversation has another under way waits for that.
    pub(super) fn replay(&mut self, place: usize, serial: u64, mut page: LetterPage, conductor: &Conductor) {
        let mut replaying = Vec::with_capacity(page.letters.len());
        // Messages of a conversation may have been given up in another order than they were taken in.
        page.letters.sort_by_key(|(id, letter)| (letter.post, *id));
        for (id, letter) in page.letters {
            if self.replays.has(id) || self.replays.stopped.contains(&letter.conversation) {
                continue;
            }
            replaying.push(id);
            match self.replays.behind.get_mut(&letter.conversation) {
                Some(behind) => behind.push_back((id, letter)),
                None => self.replay_one(id, &letter, conductor),
            }
        }
        let body = api::replaying_json(&replaying, page.next);
        self.listener.respond(place, serial, 202, api::JSON, b"", &body, self.now, &mut self.kit);
    }

    fn replay_one(&mut self, id: u64, letter: &DeadLetter, conductor: &Conductor) {
        let mut headers = self.kit.buffer();
        if letter.post != 0 {
            // Whoever had it after all knows it by its number.
            write_message_headers(&mut headers, letter.post, &letter.content_type);
        }
        let request = Request {
            from: &letter.from,
            kind: &letter.kind,
            method: &letter.method,
            target: &letter.target,
            content_type: &letter.content_type,
            headers: &headers,
            body: &letter.body,
            ..Request::default()
        };
        let by_path = request.from == "http";
        let route = conductor.router().find(&api::question(&request, by_path));
        // One that named its platform does so again; and what no rule takes any more goes where it went.
        let route = route.filter(|_| !letter.route.is_empty()).or_else(|| conductor.router().to(&letter.platform));
        let idempotent = api::is_idempotent(&request);
        let mut buffer = self.kit.calls.buffer();
        Arc::make_mut(&mut buffer).fill(&request);
        headers.clear();
        self.kit.take_back(&mut headers);
        let key = (!letter.conversation.is_empty()).then(|| fingerprint(letter.conversation.as_bytes()));
        let ask = Ask { idempotent, key, ..Ask::default() };
        self.ask_by_key(buffer, Origin::Replay { letter: id }, route, ask, conductor);
        self.replays.under_way.insert(id, letter.conversation.clone());
        if key.is_some() {
            self.replays.behind.entry(letter.conversation.clone()).or_default();
        }
    }

    /// A replay is over: the letter goes if it was answered well, and else says what went wrong; then those of its conversation
    /// that came after it stay as well, or they would overtake it.
    pub(super) fn replayed(
        &mut self,
        letter: u64,
        call: &Call,
        answer: Answer,
        problem: Option<&Problem>,
        conductor: &Conductor,
    ) {
        let conversation = self.replays.under_way.remove(&letter).unwrap_or_default();
        let behind = self.replays.behind.remove(&conversation).unwrap_or_default();
        let status = call.attempt.reply.status;
        let error = match (answer, problem) {
            // Demi ends, which says nothing about the letter.
            (Answer::Refused(Refusal::Draining, _) | Answer::Unheard, _) => return,
            (_, Some(problem)) => Some(problem.detail().to_owned()),
            (_, None) if outcome_of_status(status) == Outcome::Replied => None,
            (_, None) => Some(format!("it answered with status {status}")),
        };
        match (&error, behind) {
            (None, mut behind) => {
                if let Some((next, after)) = behind.pop_front() {
                    self.replay_one(next, &after, conductor);
                    self.replays.behind.insert(conversation, behind);
                }
            }
            (Some(_), behind) if !conversation.is_empty() => {
                if !behind.is_empty() {
                    log::info!("dead letter {letter} failed again; {} of its conversation stay as well", behind.len());
                }
                if self.replays.stopped.len() < STOPPED_MAX {
                    self.replays.stopped.insert(conversation);
                }
            }
            (Some(_), _) => {}
        }
        if !self.clerk.as_ref().is_some_and(|clerk| clerk.replayed(letter, error)) {
            log::error!(
                "what became of dead letter {letter} at its replay is not kept: too much is waiting for the store"
            );
        }
    }
}
