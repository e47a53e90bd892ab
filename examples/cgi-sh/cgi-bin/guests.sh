#!/bin/sh
# A guest book. GET shows it, POST writes in it, .../anything is 404.
set -eu
LC_ALL=C # bytes are bytes
export LC_ALL
book=../guests.txt # a script runs in its own folder

answer() { # status, type
    printf 'Status: %s\nContent-Type: %s; charset=utf-8\n\n' "$1" "$2"
}

# The value of a field of a form (RFC 3875 gives the body as it came). What the
# visitor wrote is only ever an argument or a stream, never part of a command.
field() { # name, form
    printf '%s' "$2" | tr '&' '\n' | sed -n "s/^$1=//p" | head -n 1 | decode
}

decode() { # percent-encoded text to plain text
    awk 'BEGIN { for (i = 32; i < 256; i++) { h = sprintf("%02X", i); byte[h] = sprintf("%c", i) } }
    {
        gsub(/\+/, " ")
        out = ""
        while (match($0, /%[0-9A-Fa-f][0-9A-Fa-f]/)) {
            out = out substr($0, 1, RSTART - 1) byte[toupper(substr($0, RSTART + 1, 2))]
            $0 = substr($0, RSTART + 3)
        }
        print out $0
    }' | tr -d '\000-\010\013-\037'
}

escape() { # plain text to HTML
    sed -e 's/&/\&amp;/g' -e 's/</\&lt;/g' -e 's/>/\&gt;/g' -e 's/"/\&quot;/g'
}

if [ "${PATH_INFO:-/}" != / ]; then
    answer '404 Not Found' text/plain
    echo 'There is one page in this book.'
    exit
fi

case $REQUEST_METHOD in
GET | HEAD)
    answer '200 OK' text/html
    echo '<!doctype html><html lang="en"><title>Guest book</title><h1>Guest book</h1><ul>'
    if [ -f "$book" ]; then escape <"$book" | sed 's/.*/<li>&<\/li>/'; fi
    echo '</ul><form method="post"><label>Name <input name="name"></label>'
    echo '<label>Words <input name="words"></label><button>Write</button></form></html>'
    ;;
POST)
    if [ "${CONTENT_LENGTH:-0}" -gt 4096 ]; then
        answer '413 Content Too Large' text/plain
        echo 'A few words will do.'
        exit
    fi
    form=$(head -c "${CONTENT_LENGTH:-0}")
    name=$(field name "$form")
    if [ -z "$name" ]; then
        answer '422 Unprocessable Content' text/plain
        echo 'Who are you? The field "name" is empty.'
        exit
    fi
    printf '%s: %s\n' "$name" "$(field words "$form")" >>"$book"
    printf 'Status: 303 See Other\nLocation: %s\n\n' "$SCRIPT_NAME"
    ;;
*)
    printf 'Allow: GET, HEAD, POST\n'
    answer '405 Method Not Allowed' text/plain
    echo 'GET or POST.'
    ;;
esac
