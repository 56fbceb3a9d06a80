//! What the clerk does about posts: takes them in, brings them to mind, and keeps how they end.

use std::time::Duration;

use demi_conductor::{Grave, RouteId, Tries};

use super::{store_problem, Office, Owed, ERRANDS_BEFORE_NOTES_MAX, ERRANDS_MAX};
use crate::api;
use crate::chronicle::unix_ms;
use crate::mailbox::Letter;
use crate::problem::Problem;
use crate::store::{DeadLetter, Post, PostResult, Posted, StoreError};

/// What is to be done about posts.
pub(crate) enum PostErrand {
    /// To be kept for the client at a place; [`Letter::Posted`] follows.
    Take {
        place: usize,
        serial: u64,
        /// Where it goes.
        route: RouteId,
        /// Its conversation; 0: none.
        key: u64,
        /// Bytes of it, which count as held until it is kept.
        held: usize,
        post: Box<Post>,
    },
    /// To be brought to mind; [`Letter::PostRead`] follows.
    Read(u64),
    /// An attempt to deliver it failed, and it is tried again; no letter follows.
    Note { id: u64, tries: Tries, error: String },
    /// It has ended; [`Letter::PostEnded`] follows.
    End { id: u64, ending: Box<Ending> },
    /// What is known of one, for the client at a place.
    Show { place: usize, serial: u64, id: u64 },
    /// As `Show`, for a client that follows it; [`Letter::Found`] follows. `has_heard`: it was told the end.
    Follow { place: usize, serial: u64, id: u64, has_heard: bool },
    /// The ends after the one with this number, for the client at a place; [`Letter::Found`] follows.
    Ends { place: usize, serial: u64, after: u64 },
}

/// A post that was to be brought to mind.
pub(crate) enum PostRead {
    Post(Box<Post>),
    /// The disk refuses.
    NotNow,
    /// It is unreadable, or does not wait any more.
    Never,
}

/// The end of a post.
pub(crate) struct End {
    /// Its number, if it was kept now and not before.
    pub(crate) number: Option<u64>,
    /// What became of the post; `None` if that is not remembered any more.
    pub(crate) result: Option<PostResult>,
}

/// What there is for a client that follows messages, as events of its stream.
pub(crate) enum Found {
    /// This post has not ended.
    Waits(u64, Vec<u8>),
    /// It has ended.
    Ended(Vec<u8>),
    /// It has ended, and the client was told.
    Heard,
    /// These have ended. `last` is the number of the last of them, and `has_more` says whether there may be others after it.
    Ends { events: Vec<u8>, last: u64, has_more: bool },
}

/// Ends that are read at once for a client that catches up: a quarter of what may wait for it.
const ENDS_MAX: usize = 64;

/// How a post ends.
#[derive(Clone)]
pub(crate) enum Ending {
    /// It was delivered.
    Delivered(PostResult),
    /// It is to be a dead letter.
    Buried {
        grave: Grave,
        attempts: u32,
        /// Of the last answer; 0 if there was none.
        status: u16,
        /// What went wrong last; empty if nothing was tried.
        error: String,
    },
}

/// A post that is durable: what the conductor must know of it.
pub(crate) struct Parcel {
    pub(crate) id: u64,
    pub(crate) route: RouteId,
    /// Its conversation; 0: none.
    pub(crate) key: u64,
    /// 0: at once.
    pub(crate) not_before_unix_ms: u64,
    /// 0: never.
    pub(crate) expires_unix_ms: u64,
    /// Whether it was taken now, and not before under the same idempotency key.
    pub(crate) is_new: bool,
    /// Whether it is still to be delivered.
    pub(crate) waits: bool,
}

/// A post that was written and is not durable yet, and who waits for that.
pub(super) struct TakenIn {
    place: usize,
    serial: u64,
    held: usize,
    parcel: Box<Parcel>,
}

impl PostErrand {
    /// It is refused while so many errands wait. What ends a post goes before what brings more of them.
    pub(super) fn errands_max(&self) -> usize {
        match self {
            PostErrand::End { .. } => ERRANDS_MAX,
            PostErrand::Take { .. } | PostErrand::Read(_) | PostErrand::Note { .. } => ERRANDS_BEFORE_NOTES_MAX,
            // As small as those, and asked for while many messages are taken in.
            PostErrand::Show { .. } | PostErrand::Follow { .. } | PostErrand::Ends { .. } => ERRANDS_BEFORE_NOTES_MAX,
        }
    }
}

impl Office<'_> {
    pub(super) fn see_to_post(&mut self, errand: PostErrand) {
        match errand {
            PostErrand::Take { place, serial, route, key, held, post } => {
                self.take_in(place, serial, route, key, held, &post)
            }
            PostErrand::Read(id) => {
                let read = match self.vault.ask(|store| store.read_post(id)) {
                    Ok(Some(post)) => PostRead::Post(Box::new(post)),
                    Ok(None) => {
                        log::error!("message {id} is not in the store any more and cannot be delivered");
                        PostRead::Never
                    }
                    Err(StoreError::Damaged { what, .. }) => {
                        log::error!("message {id} cannot be delivered: {what}");
                        PostRead::Never
                    }
                    Err(StoreError::Shut(_)) => PostRead::NotNow,
                    Err(error) => {
                        log::error!("message {id} cannot be read, and is tried again: {error}");
                        PostRead::NotNow
                    }
                };
                self.postbox.post(Letter::PostRead(id, read));
            }
            PostErrand::Note { id, tries, error } => {
                let noted = self.vault.ask(|store| store.note_tries(id, tries.attempts, tries.kills, &error));
                if let Err(error) = noted.map(drop).or_else(super::told_already) {
                    log::error!("what went wrong with post {id} is not kept: {error}");
                }
            }
            PostErrand::End { id, ending } => self.end_post(id, *ending),
            PostErrand::Show { place, serial, id } => {
                let page = self.vault.ask(|store| {
                    Ok(match store.post_result(id)? {
                        Some(result) => Some(api::ended_json(id, &result)),
                        None => store.show_post(id)?.map(|post| api::waiting_json(id, &post)),
                    })
                });
                let page = match page {
                    // It may tell what this group has written and is not durable yet.
                    Ok(Some(page)) if !self.owed.is_empty() => {
                        return self.owed.push(Owed::Page { place, serial, page });
                    }
                    Ok(page) => page.ok_or_else(|| Box::new(api::no_message(id))),
                    Err(error) => Err(Box::new(store_problem(error))),
                };
                self.postbox.post(Letter::Listed { place, serial, page });
            }
            PostErrand::Follow { place, serial, id, has_heard } => {
                let found = self.vault.ask(|store| {
                    Ok(match store.post_result(id)? {
                        Some(_) if has_heard => Some(Found::Heard),
                        Some(result) => Some(Found::Ended(api::ended_event(Some(id), id, &result))),
                        None => store.show_post(id)?.map(|post| Found::Waits(id, api::waiting_event(id, &post))),
                    })
                });
                let found = found.map_err(store_problem).and_then(|found| found.ok_or_else(|| api::no_message(id)));
                self.tell_found(place, serial, found);
            }
            PostErrand::Ends { place, serial, after } => {
                let ends = self.vault.ask(|store| store.ends(after, ENDS_MAX));
                let found = ends.map_err(store_problem).map(|ends| Found::Ends {
                    last: ends.last().map_or(after, |(number, ..)| *number),
                    has_more: ends.len() == ENDS_MAX,
                    events: ends
                        .iter()
                        .flat_map(|(number, id, result)| api::ended_event(Some(*number), *id, result))
                        .collect(),
                });
                self.tell_found(place, serial, found);
            }
        }
    }

    fn tell_found(&mut self, place: usize, serial: u64, found: Result<Found, Problem>) {
        match found {
            // It may tell what this group has written and is not durable yet.
            Ok(found) if !self.owed.is_empty() => self.owed.push(Owed::Found { place, serial, found }),
            found => {
                let found = found.map_err(Box::new);
                self.postbox.post(Letter::Found { place, serial, found });
            }
        }
    }

    fn take_in(&mut self, place: usize, serial: u64, route: RouteId, key: u64, held: usize, post: &Post) {
        let posts_max = self.bounds.queue_max.value();
        let (id, is_new, waits) = match self.vault.ask(|store| store.post(post, posts_max)) {
            Ok(Posted::New(id)) => (id, true, true),
            Ok(Posted::Known(id, result)) => (id, false, result.is_none()),
            Ok(Posted::Conflict(id)) => {
                let what = format!("its Idempotency-Key was used for message {id}, which is another; use a new key");
                let posted = Err(Box::new(Problem::new(409, what).code("idempotency_key")));
                return self.postbox.post(Letter::Posted { place, serial, held, posted });
            }
            Err(error) => {
                let posted = Err(Box::new(self.refusal(error)));
                return self.postbox.post(Letter::Posted { place, serial, held, posted });
            }
        };
        self.refuses_posts &= !is_new;
        let (not_before_unix_ms, expires_unix_ms) = (post.not_before_unix_ms, post.expires_unix_ms);
        let parcel = Box::new(Parcel { id, route, key, not_before_unix_ms, expires_unix_ms, is_new, waits });
        self.owed.push(Owed::Taken(TakenIn { place, serial, held, parcel }));
    }

    fn refusal(&mut self, error: StoreError) -> Problem {
        match error {
            StoreError::PostsFull { .. } | StoreError::Full { .. } => {
                // Once until one is taken again: each would say the same.
                if !std::mem::replace(&mut self.refuses_posts, true) {
                    log::error!("messages are refused: {error}");
                }
                Problem::new(507, error.to_string()).code("queue_full").retry_after(Duration::from_secs(30))
            }
            StoreError::Refused(why) => Problem::new(400, why),
            StoreError::Shut(_) => store_problem(error),
            error => {
                log::error!("a message could not be kept: {error}");
                Problem::new(503, error.to_string()).code("store").retry_after(Duration::from_secs(30))
            }
        }
    }

    pub(super) fn tell_taken(&self, taken: TakenIn, flushed: &Result<(), String>) {
        let TakenIn { place, serial, held, parcel } = taken;
        let posted = flushed.clone().map(|()| parcel).map_err(|error| {
            let problem = Problem::new(503, format!("it may not be kept: {error}"));
            Box::new(problem.code("store").retry_after(Duration::from_secs(30)))
        });
        self.postbox.post(Letter::Posted { place, serial, held, posted });
    }

    fn end_post(&mut self, id: u64, ending: Ending) {
        let is_burial = matches!(ending, Ending::Buried { .. });
        let done = match ending {
            Ending::Delivered(result) => self.vault.ask(|store| store.settle_post(id, &result)),
            Ending::Buried { grave, attempts, status, error } => self.vault.ask(|store| {
                let letter = match store.read_post(id) {
                    Ok(Some(post)) => store.bury_post(id, letter_of(post, grave, attempts, error), status)?,
                    Ok(None) => None,
                    Err(StoreError::Damaged { what, .. }) => store.bury_damaged(id, &what, unix_ms())?,
                    Err(error) => return Err(error),
                };
                Ok(letter.is_some())
            }),
        };
        let end = done.and_then(|is_new| {
            self.vault.ask(|store| {
                let number = is_new.then(|| store.last_end());
                Ok(Box::new(End { number, result: store.post_result(id)? }))
            })
        });
        match end {
            // One that does not wait any more has ended, and that may not be durable yet.
            Ok(end) => {
                // What is delivered takes no room among the dead letters.
                self.refuses_ends &= !is_burial;
                self.forget_as_many();
                return self.owed.push(Owed::PostEnded(id, end));
            }
            Err(StoreError::Shut(_)) => {}
            // Once until one is buried again: each would say the same.
            Err(StoreError::Full { .. }) if self.refuses_ends => {}
            Err(error @ StoreError::Full { .. }) => {
                self.refuses_ends = true;
                log::error!("messages that failed for good cannot be kept, and wait: {error}");
            }
            Err(error) => log::error!("the end of post {id} is not kept, and is tried again: {error}"),
        }
        self.postbox.post(Letter::PostEnded(id, None));
    }
}

impl Office<'_> {
    /// Each end is forgotten a day later: as long as two go for one that comes, what is remembered does not grow.
    fn forget_as_many(&mut self) {
        let remembered_max = self.bounds.remembered_max.value();
        // What cannot be taken away now is told with the chores.
        let _ = self.vault.ask(|store| store.forget_posts(unix_ms(), remembered_max, 2));
    }
}

fn letter_of(post: Post, grave: Grave, attempts: u32, error: String) -> DeadLetter {
    DeadLetter {
        buried_at_unix_ms: unix_ms(),
        platform: post.platform,
        reason: grave.name().to_owned(),
        attempts,
        from: post.from,
        kind: post.kind,
        method: post.method,
        target: post.target,
        content_type: post.content_type,
        body: post.body,
        route: post.route,
        first_error: if post.first_error.is_empty() { error.clone() } else { post.first_error },
        last_error: if error.is_empty() { post.last_error } else { error },
        conversation: post.conversation,
        ..DeadLetter::default()
    }
}
