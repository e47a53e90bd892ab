#!/usr/bin/perl
BEGIN { $, = "-"; $\ = "|\n"; $/ = "x"; $" = "+" }
print 1, 2, 3; my @a = (1, 2); print "@a";
my $line = <STDIN>; print $line;
# body: beforexafter
