#!/usr/bin/perl
# body: a\nb\nc\n
<STDIN>; <STDIN>;
warn "here";
print STDERR "$.\n";
die;
