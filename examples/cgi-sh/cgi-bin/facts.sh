#!/bin/sh
# The shortest useful CGI script: fields, an empty line, a body.
printf 'Content-Type: text/plain; charset=utf-8\n\n'
printf 'This is %s, asked by %s for %s.\n' "$SERVER_NAME" "$REMOTE_ADDR" "$SCRIPT_NAME$PATH_INFO"
date '+The time is %H:%M:%S.'
uname -srm
