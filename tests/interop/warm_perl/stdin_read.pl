#!/usr/bin/perl
# body: 0123456789\nsecond line\nthird
use strict; use warnings;
read STDIN, my $begin, 4;
print "$begin|", tell(STDIN), "\n";
while (<STDIN>) { print "$.:$_" }
print "\n", eof(STDIN) ? "end" : "more", " ", -t STDIN ? 1 : 0, "\n";
