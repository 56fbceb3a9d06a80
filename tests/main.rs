//! Real sockets, real processes, a real store. Few, ugly and honest; what can be shown without them is shown elsewhere.

mod client;
mod commands;
mod control;
mod dead_letters;
mod embedding;
mod health;
mod health_page;
mod hedging;
mod http_regressions;
mod isolation;
mod mcp;
mod metrics;
mod plugin_protocol;
mod plugin_tools;
mod plugins;
mod processes;
mod proxy_rewriting;
mod proxy_trailers;
mod proxy_tunnels;
mod proxy_uploads;
mod proxying;
mod regressions;
mod smuggling;
mod sockets;
mod support;
mod tree;
