#!/usr/bin/perl
# The clock starts with the request.
print abs(time - $^T) <= 2 ? "now\n" : "not now: ${\ (time - $^T)}\n";
my ($u, $s, $cu, $cs) = times;
print $u + $s < 2 ? "little\n" : "much\n", $cu + $cs, "\n";
print -M $0 > -1 ? "age\n" : "";
open my $f, '>', 'new.txt'; close $f; printf "%s\n", -M 'new.txt' < 0.0001 ? "new" : "old";
