#!/bin/sh
# What a script writes leaves at once: curl shows a line every half second.
printf 'Content-Type: text/plain; charset=utf-8\n\n'
for i in 3 2 1; do
    echo "$i"
    sleep 0.5
done
echo 'Go.'
