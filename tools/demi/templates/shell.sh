#!/bin/sh
# {{name}}: a plugin for Demi, in nothing but a POSIX shell.
#
# JSON-RPC 2.0, one message a line: Demi asks on stdin, answers go to stdout, and stderr is the log.
#
# A shell knows no JSON, so this has limits. It relies on the order in which Demi writes the fields of a message; it takes
# and gives bodies as they stand between the quotes, with JSON's escapes (\" \\ \n) in them; it takes text only; it does
# one thing at a time; and a body of a megabyte takes it a second. For more than that, use another language.

LC_ALL=C

# ---- your own code: this one ----------------------------------------------------------------------------------------

# Answers one request: the body, still escaped, is $1; print the answer, escaped likewise. A status other than 0 is a failure.
# Programs that you call must not read this script's stdin: give them </dev/null.
handle() {
    printf '%s' "$1"
}

# ---- the protocol: no need to change anything below -----------------------------------------------------------------

result() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
fail() { printf '{"jsonrpc":"2.0","id":%s,"error":{"code":%s,"message":"%s"}}\n' "$id" "$1" "$2"; }

answer() {
    case $line in
        *'"body_base64":"'*) fail -32001 'this plugin takes text only'; return ;;
        *'"body":"'*) body=${line#*'"body":"'} body=${body%'"}}'*} ;;
        *) body= ;;
    esac
    # The x keeps line ends at the end, which the shell would cut off.
    if reply=$(handle "$body" && printf x); then
        result "{\"status\":200,\"content_type\":\"text/plain; charset=utf-8\",\"body\":\"${reply%x}\"}"
    else
        fail -32000 'it failed; its log tells more'
    fi
}

while IFS= read -r line; do
    # What is no message of Demi's is passed over.
    case $line in
        '{"jsonrpc":"2.0",'*'"method":"'*'}') ;;
        *) echo 'passed over a line that is no message' >&2; continue ;;
    esac
    # The id of a call stands before its method; a notification has none.
    before=${line%%'"method":"'*}
    method=${line#*'"method":"'} method=${method%%'"'*}
    case $before in
        *'"id":'*) id=${before#*'"id":'} id=${id%%,*} ;;
        *) id= ;;
    esac
    case $method:$id in
        shutdown:*) exit 0 ;;
        *:) ;; # cancel, and whatever else wants no answer
        *:*[!0-9]*) echo 'passed over an id that is no number' >&2 ;;
        initialize:*) result '{"protocol":1}' ;;
        handle:*) answer ;;
        health:* | trim:*) result '{"status":"up"}' ;;
        *) fail -32601 'there is no such method' ;;
    esac
done
