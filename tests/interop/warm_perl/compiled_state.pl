#!/usr/bin/perl
# What compiling leaves in the special variables.
BEGIN { eval { die "left over\n" }; $! = 2; "abc" =~ /(b)/; $_ = "topic"; @ARGV = ("shifted"); $0 = $0; }
print "$@|", $! + 0, "|$_|@ARGV|", defined $1 ? $1 : "", "|$?\n";
