#!/usr/bin/perl
open my $f, '>', \my $memory; my $old = select $f; print "into memory"; select $old;
print "$old $memory\n";
{ local ($,, $\) = ("-", "!\n"); print 1, 2, 3; }
our @list = (1 .. 3); { local $" = ":"; print "@list\n"; }
print "$_ " for sort { $b <=> $a } @list; print "\n";
