#!/usr/bin/perl
# Not the same in two requests: the files hold the numbers, the comparison their count.
my @n = map { int rand 1e9 } 1 .. 3;
open my $f, '>>', '/tmp/does-not-matter' if 0;
srand 42; my $a = rand; srand 42; my $b = rand;
print $a == $b ? "repeats\n" : "differs\n", $a, "\n";
