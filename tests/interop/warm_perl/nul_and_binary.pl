#!/usr/bin/perl
# body: \x00\xff\x0a\x00
binmode STDIN; binmode STDOUT; local $/; my $all = <STDIN>; print length $all, $all, pack "C*", 0 .. 255;
