#!/bin/sh
echo "Content-Type: text/plain"
echo
date
echo "$SCRIPT_NAME $PATH_INFO"
