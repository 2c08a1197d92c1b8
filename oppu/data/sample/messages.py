"""The pool of made-up messages: a kernel with slots becomes a `Note` when its slots are filled by chance.

Every kernel belongs to a theme, and its topic and verb stand in its text, so that a subject line can be read off it.
Whether a note names a day, an amount or a relative can be seen in its text alone; personal habits build on these.
"""

from dataclasses import dataclass
from random import Random
from string import Formatter

THEMES = ("finance", "family", "work", "home", "health", "calendar")
"""What a message is about; also the folders of the label task. `calendar` is about outings and trips."""

SLOTS: dict[str, tuple[str, ...]] = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "amount": ("$15", "$25", "$40", "$65", "$80", "$120", "$180", "$240", "$350", "$500"),
    "kin": ("Mum", "Dad", "Grandma", "Grandpa", "Aunt Rosa", "Uncle Ted", "my sister", "my brother", "cousin Nina"),
    "child": ("our son", "our daughter", "little Leo", "little Mia"),
    "colleague": ("Priya", "Marcus", "Helen", "my boss", "our new manager"),
    "town": ("Leeds", "Porto", "Lyon", "Boston", "Ghent", "Dublin"),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A message with slots."""

    theme: str
    topic: str
    verb: str
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A message and what can be seen in it."""

    theme: str
    topic: str
    verb: str
    text: str
    day: str | None
    amount: str | None
    relative: str | None


def fill(kernel: Kernel, rng: Random) -> Note:
    """Fill the slots of a kernel."""
    names = [name for _, name, _, _ in Formatter().parse(kernel.text) if name]
    values = {name: rng.choice(SLOTS[name]) for name in names}
    text = kernel.text.format(**values)
    relative = values.get("kin") or values.get("child")
    day, amount = values.get("day"), values.get("amount")
    return Note(kernel.theme, kernel.topic, kernel.verb, text[0].upper() + text[1:], day, amount, relative)


_POOL = {
    "finance": """
        bank card | order | The bank card of {kin} stopped working, so please order a new one.
        tax return | send | I must send the tax return before {day}, or there is a fine.
        savings account | move | Could you move {amount} into the savings account when you have a minute?
        car insurance | renew | The car insurance went up by {amount}, shall we still renew it?
        phone bill | pay | Please pay the phone bill of {amount} by {day} at the latest.
        pension letter | read | A pension letter came for {kin}, and somebody should read it carefully.
        credit card | check | There is a strange charge of {amount} on the credit card, please check.
        monthly budget | review | Let us review the monthly budget together, we spend too much on food.
        loan papers | sign | The bank wants us to sign the loan papers on {day} at noon.
        pocket money | raise | {child} asks us to raise the pocket money to {amount} a month.
        parking fine | contest | I would like to contest the parking fine of {amount}, do you agree?
        gift voucher | spend | The gift voucher for {amount} runs out on {day}, so spend it soon.
        foreign currency | change | Remember to change some foreign currency at the bank before it closes.
        tax refund | split | The tax refund of {amount} has arrived, how shall we split it?
        donation receipt | keep | Please keep the donation receipt, we need it for the taxes.
        private loan | repay | I will repay the private loan of {amount} from {kin} on {day}.
        bank password | change | Your bank password is far too old, so please change it soon.
        stock fund | sell | {kin} thinks we should sell the stock fund before prices fall again.
        direct debit | cancel | Can you cancel the direct debit of {amount} for the old magazine?
        tuition fee | transfer | Please transfer the tuition fee of {amount} for {child} by {day}.
        bank meeting | prepare | Can you prepare our bank meeting on {day} and print the statements?
        cash limit | raise | The bank can raise the cash limit of {kin}, is that wise?
        """,
    "family": """
        birthday cake | bake | I will bake the birthday cake for {child} on {day} after lunch.
        school play | watch | {child} wants all of us to watch the school play on {day}.
        family photo | frame | Could you frame the family photo that {kin} sent us from the lake?
        school lunch | pay | We still have to pay {amount} for the school lunch of {child}.
        bedtime story | read | {child} asks you to read the bedtime story with the green dragon again.
        wedding present | choose | Help me choose a wedding present for {kin}, about {amount} would be fine.
        football boots | buy | {child} has outgrown the football boots, so we must buy new ones.
        family lunch | cook | {kin} would love to cook the family lunch for everybody on {day}.
        parents evening | attend | Can one of us attend the parents evening at school on {day}?
        baby clothes | sort | Let us sort the baby clothes and give the rest to the neighbours.
        guinea pig | feed | Who can feed the guinea pig of {child} while we are away?
        maths homework | explain | {child} needs you to explain the maths homework, I could not follow it.
        family tree | draw | {kin} and I would like to draw the family tree with old photos.
        music lessons | book | The music lessons for the kids cost {amount} now, shall I book them?
        evening babysitter | find | We have to find an evening babysitter for {day}, our usual one is away.
        swimming badge | sew | Please sew the swimming badge on the blue towel, the kids are proud.
        school bag | mend | The school bag is torn again, can you mend it for {child}?
        godparents letter | write | I want to write the godparents letter with the children before {day}.
        sleepover plan | discuss | The kids want to discuss the sleepover plan for {day} with us.
        old pram | sell | We could sell the old pram for {amount}, the children are too big.
        phone call | return | {kin} misses you, please return the phone call and have a long chat.
        anniversary dinner | plan | Shall we plan an anniversary dinner for {kin}, perhaps on {day} evening?
        """,
    "work": """
        sales report | finish | {colleague} needs me to finish the sales report before {day} noon.
        team meeting | move | Can we move the team meeting to {day}, the large room is taken?
        client contract | sign | {colleague} says the buyer will sign the client contract on {day} morning.
        office printer | replace | The office printer is broken again, please replace it for {amount}.
        job interview | prepare | Help me prepare the job interview questions for the new designer.
        travel expenses | claim | Remember to claim the travel expenses of {amount} for the visit in {town}.
        project plan | update | {colleague} asks you to update the project plan with the new deadlines.
        training course | join | Would you join the training course with {colleague} on {day} afternoon?
        customer complaint | answer | Please answer the customer complaint about the late delivery before it grows.
        holiday cover | arrange | I must arrange holiday cover with {colleague}, since {child} is off school.
        night shift | swap | Could you swap the night shift with me, {kin} is visiting us?
        conference talk | rehearse | Let us rehearse the conference talk with {colleague} in the small room.
        salary review | discuss | {colleague} will discuss the salary review on {day}, I hope for {amount}.
        supplier invoice | approve | Please approve the supplier invoice of {amount}, {colleague} is waiting for it.
        product launch | announce | We will announce the product launch to all the shops on {day}.
        meeting notes | share | Can you share the meeting notes with {colleague} and the whole team?
        business cards | print | Please print new business cards, the ones for {colleague} have a mistake.
        office key | return | {colleague} forgot to return the office key and the alarm code.
        budget proposal | present | I have to present the budget proposal of {amount} to the board on {day}.
        summer internship | offer | Our company could offer a summer internship to {child}, what do you think?
        farewell gift | collect | We collect {amount} for the farewell gift, {colleague} leaves the company soon.
        server backup | test | The technicians want to test the server backup, so save your files.
        """,
    "home": """
        boiler repair | confirm | The plumber offers the boiler repair on {day} for {amount}, please confirm.
        garden fence | paint | Shall we paint the garden fence on {day} if it stays dry?
        kitchen tap | fix | The kitchen tap drips all night, who can fix it for us?
        washing machine | repair | They can repair the washing machine for {amount}, a new one costs more.
        spare room | tidy | {kin} will sleep here, so please tidy the spare room and find sheets.
        light bulb | change | The light bulb in the hall is dead, please change it.
        roof leak | inspect | A builder comes to inspect the roof leak on {day} before breakfast.
        recycling bins | empty | Please put out the recycling bins, they empty them early on {day}.
        bedroom curtains | hang | {kin} offered to hang the bedroom curtains and brought the long ladder.
        lawn mower | borrow | May I borrow the lawn mower from the neighbours, ours will not start?
        bunk bed | build | Can you build the bunk bed for {child}, the screws are in the box?
        kitchen shelf | order | I want to order the kitchen shelf for {amount}, is the wall long enough?
        front door | lock | Somebody did not lock the front door last night, please be careful.
        window cleaner | call | Could you call the window cleaner and ask about the big windows?
        apple tree | cut | {kin} says we must cut the apple tree before winter comes.
        carpet cleaning | book | I would book the carpet cleaning for {day}, it costs {amount} in all.
        smoke alarm | test | The smoke alarm beeps every hour, can you test the battery?
        electric meter | read | A man will come to read the electric meter on {day} morning.
        garage door | oil | The garage door squeaks terribly, so please oil it when you can.
        moving boxes | carry | {kin} helps us to carry the moving boxes up from the cellar.
        new sofa | deliver | The shop will deliver the new sofa on {day}, {amount} is still due.
        garden gate | mend | Please mend the garden gate, {child} can already open it alone.
        """,
    "health": """
        dentist appointment | cancel | I have to cancel the dentist appointment on {day}, something came up.
        cough syrup | buy | Please buy cough syrup on your way, {child} coughed the whole night.
        blood test | book | The doctor wants me to book a blood test without breakfast.
        flu jab | get | {kin} should get the flu jab on {day}, the surgery is open late.
        physio exercises | do | I promised to do my physio exercises twice, please remind me gently.
        new glasses | collect | The new glasses for {kin} are ready to collect and cost {amount}.
        hospital visit | plan | Let us plan the hospital visit to {kin} for {day} after lunch.
        sick note | ask | Did you ask the doctor for a sick note, the fever is high?
        hearing aid | repair | To repair the hearing aid of {kin} they want {amount} in advance.
        back pain | stretch | My back pain is worse, show me how to stretch it properly.
        eye test | take | {child} has to take an eye test at the clinic on {day}.
        running shoes | replace | My knees hurt, so I will replace the running shoes for {amount}.
        vitamin pills | order | Could you order the vitamin pills, the doctor says they do help?
        gym membership | pause | I would pause the gym membership, {amount} is a lot with a bad shoulder.
        allergy diet | follow | {child} must follow the allergy diet, so no nuts and no milk.
        knee surgery | discuss | The surgeon wants to discuss the knee surgery on {day} at nine.
        tooth crown | decide | A tooth crown costs {amount}, the dentist asks us to decide by {day}.
        sleep problems | describe | Please describe your sleep problems to the doctor, she gives good advice.
        first aid | learn | Would you learn first aid with me, the nurse teaches it on {day}?
        blood pressure | measure | {kin} forgets to measure the blood pressure, please call and remind.
        repeat prescription | fetch | Can you fetch the repeat prescription from the pharmacy, my throat is sore?
        ankle bandage | change | The nurse can change the ankle bandage of {child} on {day} morning.
        """,
    "calendar": """
        concert tickets | buy | Shall we buy concert tickets for {day}, they are {amount} each?
        train tickets | print | Please print the train tickets to {town}, we leave early on {day}.
        film night | join | Would you join our film night on {day}, somebody brings popcorn?
        book club | host | I will host the book club on {day}, the novel is short.
        museum tour | reserve | Can you reserve the museum tour in {town}, it is free for students?
        beach holiday | choose | Let us choose the beach holiday together, {kin} wants to come too.
        hotel room | book | I found a hotel room in {town} for {amount}, shall I book it?
        garden party | attend | The neighbours hope we attend the garden party on {day} with a salad.
        chess club | visit | A new chess club has opened, we could visit it one evening.
        airport taxi | order | Please order the airport taxi for {day}, it should cost {amount} or less.
        choir rehearsal | skip | I have to skip the choir rehearsal on {day}, we have guests then.
        city run | enter | Are you brave enough to enter the city run, it costs {amount}?
        theatre seats | swap | {kin} cannot come, could we swap the theatre seats for another night?
        camping weekend | plan | We should plan the camping weekend by the river, {child} counts the hours.
        street festival | help | Who wants to help at the street festival on {day}, drinks are free?
        pottery class | try | Let us try the pottery class in {town}, beginners are most welcome.
        quiz night | win | Our team could win the quiz night on {day}, please learn the rivers.
        boat trip | cancel | They had to cancel the boat trip, we get the {amount} back.
        car rental | confirm | Can you confirm the car rental in {town}, {amount} for the whole week?
        dinner table | reserve | I would like to reserve a dinner table for {day}, we are six.
        zoo visit | repeat | {child} would love to repeat the zoo visit and see the seals.
        salsa evening | miss | You should not miss the salsa evening, the band comes from {town}.
        """,
}

KERNELS: dict[str, tuple[Kernel, ...]] = {
    theme: tuple(Kernel(theme, *(part.strip() for part in line.split("|"))) for line in lines.strip().splitlines())
    for theme, lines in _POOL.items()
}
"""All kernels by theme, 22 each."""
