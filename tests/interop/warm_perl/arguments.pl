#!/usr/bin/perl -w
use strict;
print scalar(@ARGV), "|@ARGV|$0|", __FILE__, "|", __LINE__, "|$^X|", defined caller() ? 1 : 0, "|${^GLOBAL_PHASE}|$^W|", defined $^S ? $^S : "u", "\n";
print "$]|$;|@{[ length $; ]}|$,|$\|$/|$\"|\n";
