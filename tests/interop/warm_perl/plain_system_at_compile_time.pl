#!/usr/bin/perl
# plain: starts a program
BEGIN { system "true" }
print "$?\n";
